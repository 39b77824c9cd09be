package stream

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/kith-im/kith/protocol"
)

var (
	key   = protocol.StreamKey{1}
	peerI = []byte("peer of the initiator")
	peerR = []byte("peer of the responder")
)

func TestName(t *testing.T) {
	seen := map[string]bool{}
	for k := range byte(20) {
		for day := range int64(20) {
			name := Name(protocol.StreamKey{k}, day)
			if len(name) != 33 || name[0] != '/' {
				t.Fatalf("the name %q has another shape", name)
			}
			if seen[name] {
				t.Fatal("two keys or days share a name")
			}
			seen[name] = true
		}
	}
	if Name(key, 5) != Name(key, 5) {
		t.Error("the two sides derive different names")
	}
}

func TestHello(t *testing.T) {
	type side struct {
		key        protocol.StreamKey
		self, peer []byte
	}
	i := side{key, peerI, peerR}
	r := side{key, peerR, peerI}
	tests := []struct {
		name string
		i, r side
		ok   bool
	}{
		{"honest", i, r, true},
		{"another key", i, side{protocol.StreamKey{2}, peerR, peerI}, false},
		{"a relay that ends both transports", side{key, peerI, []byte("relay")}, side{key, peerR, []byte("relay")}, false},
		{"the initiator is elsewhere", i, side{key, peerR, []byte("other")}, false},
		{"the responder is elsewhere", i, side{key, []byte("other"), peerI}, false},
		{"another initiator", side{key, []byte("peer of the initiatoR"), peerR}, r, false},
		{"another responder", side{key, peerI, []byte("peer of the respondeR")}, r, false},
		{"the names cut differently", side{key, []byte("ab"), []byte("c")}, side{key, []byte("bc"), []byte("a")}, false},
		{"empty names", side{key, nil, nil}, side{key, nil, nil}, true},
	}
	for _, tt := range tests {
		a, hello1, err := Initiate(random(1), tt.i.key, tt.i.self, tt.i.peer)
		if err != nil {
			t.Fatal(err)
		}
		b, hello2, err := Respond(random(2), tt.r.key, tt.r.self, tt.r.peer, hello1)
		if err != nil {
			t.Fatal(err)
		}
		if len(hello1) != Hello1Size || len(hello2) != Hello2Size {
			t.Fatal("a hello has another size")
		}
		hello3, err := a.Finish(hello2)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrHello) {
			t.Errorf("%s: the initiator got %v", tt.name, err)
		}
		if tt.ok {
			if err := b.Finish(hello3); err != nil || len(hello3) != Hello3Size {
				t.Errorf("%s: the responder got %v", tt.name, err)
			}
		}
		// Even had the initiator answered, the responder would see the difference.
		forced := helloMACs(tt.i.key, hello1, hello2[:nonceSize], tt.i.self, tt.i.peer).initiator
		if err := b.Finish(forced[:]); (err == nil) != tt.ok {
			t.Errorf("%s: the responder alone got %v", tt.name, err)
		}
	}
}

// Every step of docs/spec/stream.md, section 3, with something wrong in it.
func TestHelloRefuses(t *testing.T) {
	a, hello1, err := Initiate(random(3), key, peerI, peerR)
	if err != nil {
		t.Fatal(err)
	}
	b, hello2, err := Respond(random(4), key, peerR, peerI, hello1)
	if err != nil {
		t.Fatal(err)
	}
	hello3, err := a.Finish(hello2)
	if err != nil {
		t.Fatal(err)
	}
	for at := range hello2 {
		bad := slices.Clone(hello2)
		bad[at] ^= 1
		if _, err := a.Finish(bad); !errors.Is(err, ErrHello) {
			t.Fatalf("hello 2 with byte %d changed: got %v", at, err)
		}
	}
	for at := range hello3 {
		bad := slices.Clone(hello3)
		bad[at] ^= 1
		if err := b.Finish(bad); !errors.Is(err, ErrHello) {
			t.Fatalf("hello 3 with byte %d changed: got %v", at, err)
		}
	}
	if _, err := a.Finish(hello2[:Hello2Size-1]); !errors.Is(err, ErrHello) {
		t.Errorf("short hello 2: got %v", err)
	}
	if err := b.Finish(hello3[:Hello3Size-1]); !errors.Is(err, ErrHello) {
		t.Errorf("short hello 3: got %v", err)
	}
	if _, _, err := Respond(random(5), key, peerR, peerI, hello1[:31]); !errors.Is(err, ErrHello) {
		t.Errorf("short hello 1: got %v", err)
	}

	// A responder's own words, sent back, are no proof, and neither is an old hello.
	if err := b.Finish(hello2[nonceSize:]); !errors.Is(err, ErrHello) {
		t.Errorf("reflected: got %v", err)
	}
	later, _, err := Respond(random(6), key, peerR, peerI, hello1)
	if err != nil {
		t.Fatal(err)
	}
	if err := later.Finish(hello3); !errors.Is(err, ErrHello) {
		t.Errorf("replayed: got %v", err)
	}
	if _, _, err := Initiate(iotest.ErrReader(io.ErrClosedPipe), key, nil, nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("no randomness: got %v", err)
	}
	if _, _, err := Respond(iotest.ErrReader(io.ErrClosedPipe), key, nil, nil, hello1); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("no randomness: got %v", err)
	}
}

func frames() []Frame {
	f := []Frame{
		{Type: TypeAck},
		{Type: TypeAck, Count: 1<<64 - 1},
		{Type: TypePing, Token: [8]byte{1, 2}},
		{Type: TypePong, Token: [8]byte{3}},
		{Type: TypeClose, Reason: ReasonSuperseded},
		{Type: TypeClose, Reason: ReasonIdle},
		{Type: TypeClose, Reason: ReasonShutdown},
	}
	for n := protocol.MinEnvelope; n <= protocol.MaxEnvelope; n *= 2 {
		f = append(f, Frame{Type: TypeEnvelope, Envelope: randomBytes(random(byte(n>>10)), n)})
	}
	return f
}

func equal(a, b Frame) bool {
	return a.Type == b.Type && bytes.Equal(a.Envelope, b.Envelope) && a.Count == b.Count && a.Token == b.Token && a.Reason == b.Reason
}

func TestFrames(t *testing.T) {
	var wire []byte
	for _, f := range frames() {
		wire = AppendFrame(wire, f)
	}
	for _, src := range []io.Reader{bytes.NewReader(wire), iotest.OneByteReader(bytes.NewReader(wire)), iotest.DataErrReader(bytes.NewReader(wire))} {
		r := bufio.NewReader(src)
		for i, want := range frames() {
			got, err := ReadFrame(r)
			if err != nil || !equal(got, want) {
				t.Fatalf("frame %d: got type %d, %v", i, got.Type, err)
			}
		}
		if _, err := ReadFrame(r); err != io.EOF { //nolint:errorlint // ReadFrame promises io.EOF itself
			t.Errorf("at the end: got %v, want io.EOF", err)
		}
	}

	for _, f := range frames() {
		whole := AppendFrame(nil, f)
		for n := 1; n < len(whole); n += 1 + n/3 {
			if _, err := ReadFrame(bufio.NewReader(bytes.NewReader(whole[:n]))); err != io.ErrUnexpectedEOF { //nolint:errorlint // as above
				t.Fatalf("type %d cut to %d bytes: got %v", f.Type, n, err)
			}
		}
	}
}

func TestAppendFramePanics(t *testing.T) {
	for name, f := range map[string]Frame{
		"no type":           {},
		"unknown type":      {Type: 6},
		"no envelope":       {Type: TypeEnvelope},
		"odd envelope":      {Type: TypeEnvelope, Envelope: make([]byte, 1500)},
		"too much envelope": {Type: TypeEnvelope, Envelope: make([]byte, 2*protocol.MaxEnvelope)},
		"no reason":         {Type: TypeClose},
		"unknown reason":    {Type: TypeClose, Reason: 4},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: did not panic", name)
				}
			}()
			AppendFrame(nil, f)
		}()
	}
}

// One encoding of one frame, as docs/spec/overview.md, section 1, wants.
func TestF07_CanonicalFrames(t *testing.T) {
	ack := make([]byte, 8)
	for name, wire := range map[string][]byte{
		"length 0":               {0},
		"length 1":               {1, byte(TypeAck)},
		"padded length":          slices.Concat([]byte{0x89, 0x00, byte(TypeAck)}, ack),
		"padded length, longer":  slices.Concat([]byte{0x89, 0x80, 0x00, byte(TypeAck)}, ack),
		"zero in two bytes":      {0x80, 0x00},
		"four bytes of length":   {0x81, 0x80, 0x80, 0x01, 1},
		"type 0":                 slices.Concat([]byte{9, 0}, ack),
		"type 6":                 slices.Concat([]byte{9, 6}, ack),
		"ack too short":          slices.Concat([]byte{8, byte(TypeAck)}, ack),
		"ack too long":           slices.Concat([]byte{10, byte(TypeAck)}, ack, ack),
		"ping too long":          slices.Concat([]byte{10, byte(TypePing)}, ack, ack),
		"close without a reason": {1, byte(TypeClose)},
		"close, reason 0":        {2, byte(TypeClose), 0},
		"close, reason 4":        {2, byte(TypeClose), 4},
		"empty envelope":         {1, byte(TypeEnvelope)},
		"envelope of no size":    append(binary.AppendUvarint(nil, 1+1025), make([]byte, 1026)...),
	} {
		if len(wire) > 1000 {
			wire[2] = byte(TypeEnvelope)
		}
		if _, err := ReadFrame(bufio.NewReader(bytes.NewReader(wire))); !errors.Is(err, protocol.ErrFrame) {
			t.Errorf("%s: got %v, want %v", name, err, protocol.ErrFrame)
		}
	}
}

// F06: a length beyond the limit costs no memory at all, and one within it no
// more than what arrives.
func TestF06_HugeFrame(t *testing.T) {
	allocated := func(wire []byte) uint64 {
		src := bytes.NewReader(nil)
		r := bufio.NewReader(src)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 100 {
			src.Reset(wire)
			r.Reset(src)
			if _, err := ReadFrame(r); err == nil {
				t.Fatal("read a frame that is not there")
			}
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / 100
	}
	for _, length := range []uint64{MaxFrame + 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		wire := append(binary.AppendUvarint(nil, length), byte(TypeEnvelope))
		if n := allocated(wire); n > 128 {
			t.Errorf("a claim of %d bytes allocates %d", length, n)
		}
		if _, err := ReadFrame(bufio.NewReader(bytes.NewReader(wire))); !errors.Is(err, protocol.ErrFrame) {
			t.Errorf("a claim of %d bytes: got %v", length, err)
		}
	}
	wire := append(binary.AppendUvarint(nil, MaxFrame), byte(TypeEnvelope))
	if n := allocated(append(wire, make([]byte, 100)...)); n > 2*protocol.FirstRead {
		t.Errorf("a claim of 128 KiB with 100 bytes behind it allocates %d", n)
	}
	whole := AppendFrame(nil, Frame{Type: TypeEnvelope, Envelope: make([]byte, protocol.MaxEnvelope)})
	if n := allocated(whole[:len(whole)-1]); n > 4*uint64(len(whole))+64<<10 {
		t.Errorf("a frame of %d bytes allocates %d", len(whole), n)
	}
}

func TestVectors(t *testing.T) {
	type hello struct{ Key, PeerI, PeerR, NonceI, NonceR, Hello1, Hello2, Hello3 string }
	type name struct {
		Key  string
		Day  int64
		Name string
	}
	var v struct {
		Names  []name
		Hellos []hello
		Frames []string
	}
	h := hex.EncodeToString
	for n := range byte(3) {
		r := random(50 + n)
		k := protocol.StreamKey(randomBytes(r, 32))
		v.Names = append(v.Names, name{h(k[:]), 20833 + int64(n), Name(k, 20833+int64(n))})
		pi, pr := randomBytes(r, 38), randomBytes(r, 38+int(n))
		ni, nr := randomBytes(r, 32), randomBytes(r, 32)
		a, hello1, err := Initiate(bytes.NewReader(ni), k, pi, pr)
		if err != nil {
			t.Fatal(err)
		}
		b, hello2, err := Respond(bytes.NewReader(nr), k, pr, pi, hello1)
		if err != nil {
			t.Fatal(err)
		}
		hello3, err := a.Finish(hello2)
		if err != nil || b.Finish(hello3) != nil {
			t.Fatal("the hello failed")
		}
		v.Hellos = append(v.Hellos, hello{h(k[:]), h(pi), h(pr), h(ni), h(nr), h(hello1), h(hello2), h(hello3)})
	}
	for _, f := range frames() {
		if len(f.Envelope) <= protocol.MinEnvelope {
			v.Frames = append(v.Frames, h(AppendFrame(nil, f)))
		}
	}
	golden(t, "stream.json", v)
}

func FuzzReadFrame(f *testing.F) {
	for _, frame := range frames()[:8] {
		f.Add(AppendFrame(nil, frame))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		buffered := bufio.NewReader(r)
		frame, err := ReadFrame(buffered)
		if err != nil {
			return
		}
		read := len(b) - r.Len() - buffered.Buffered()
		if again := AppendFrame(nil, frame); !bytes.Equal(again, b[:read]) {
			t.Error("a frame has two encodings")
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(make([]byte, Hello1Size), make([]byte, Hello2Size), make([]byte, Hello3Size))
	f.Fuzz(func(t *testing.T, hello1, hello2, hello3 []byte) {
		a, _, err := Initiate(random(7), key, peerI, peerR)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Finish(hello2); err == nil {
			t.Error("a hello without the key was accepted")
		}
		b, _, err := Respond(random(8), key, peerR, peerI, hello1)
		if err == nil && b.Finish(hello3) == nil {
			t.Error("a proof without the key was accepted")
		}
	})
}

func BenchmarkReadFrame(b *testing.B) {
	for _, n := range []int{1 << 10, 128 << 10} {
		wire := AppendFrame(nil, Frame{Type: TypeEnvelope, Envelope: make([]byte, n)})
		src := bytes.NewReader(nil)
		r := bufio.NewReaderSize(src, 64<<10)
		b.Run(map[int]string{1 << 10: "1KiB", 128 << 10: "128KiB"}[n], func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				src.Reset(wire)
				r.Reset(src)
				if _, err := ReadFrame(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
