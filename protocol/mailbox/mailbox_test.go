package mailbox

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
)

var (
	node    = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	nodeKey = [32]byte(node.Public().(ed25519.PublicKey))
	boxKey  = BoxKey{9}
)

func newEnvelope(seed byte, n int) []byte { return randomBytes(random(seed), n) }

// requests and answers have every type, with the limits of each.
func requests() []Frame {
	env := newEnvelope(1, protocol.MinEnvelope)
	full := &Tags{Generation: 1<<64 - 1, Prune: true}
	for i := range MaxTags {
		full.Tags = append(full.Tags, Registration{Tag: envelope.Tag{byte(i >> 8), byte(i)}, Class: ClassRequest})
	}
	done := &Collect{After: 1<<64 - 1, Wait: MaxWait}
	for i := range uint64(MaxItems) {
		done.Done = append(done.Done, i+1)
	}
	return []Frame{
		&Deposit{Envelope: env},
		&Deposit{Envelope: newEnvelope(2, protocol.MaxEnvelope)},
		AuditFor(env, Nonce{1}),
		SignOpen(&boxKey, nodeKey, Nonce{1}, false),
		SignOpen(&boxKey, nodeKey, Nonce{1}, true),
		&Tags{Generation: 1},
		&Tags{Generation: 2, Tags: []Registration{{envelope.Tag{1}, ClassContact}, {envelope.Tag{2}, ClassRequest}}},
		full,
		&Collect{},
		&Collect{Done: []uint64{1, 2, 1<<64 - 1}, After: 7, Wait: time.Second},
		done,
	}
}

func answers() []Frame {
	small, large := newEnvelope(1, protocol.MinEnvelope), newEnvelope(2, protocol.MaxEnvelope)
	many, much := &Page{More: true}, &Page{}
	for i := range uint64(MaxItems) {
		many.Items = append(many.Items, Item{ID: i + 1, Envelope: small})
	}
	for i := range uint64(MaxPage / protocol.MaxEnvelope) {
		much.Items = append(much.Items, Item{ID: 1<<64 - 100 + i, Envelope: large})
	}
	f := []Frame{
		&Hello{},
		&Hello{Nonce: Nonce{1, 2}, Draining: true, Hours: 336},
		SignStored(node, small, 720),
		Prove(small, Nonce{3}),
		&Opened{},
		&Opened{Generation: 1, Tags: 2, Items: 3, Bytes: 4, Quota: 5},
		&Registered{Generation: 1, Tags: 2},
		&Page{},
		&Page{Items: []Item{{1, small}, {9, newEnvelope(3, 2048)}}},
		many,
		much,
		&Refused{Why: RefusedBusy, Wait: MaxWait},
	}
	for why := RefusedUnknown; why <= RefusedLimit; why++ {
		f = append(f, &Refused{Why: why})
	}
	return f
}

type reader struct {
	name   string
	read   func(*bufio.Reader) (Frame, error)
	frames []Frame
}

func readers() []reader {
	return []reader{{"request", ReadRequest, requests()}, {"answer", ReadAnswer, answers()}}
}

func TestFrames(t *testing.T) {
	for _, side := range readers() {
		var wire []byte
		for _, f := range side.frames {
			wire = AppendFrame(wire, f)
		}
		for _, src := range []io.Reader{bytes.NewReader(wire), iotest.OneByteReader(bytes.NewReader(wire)), iotest.DataErrReader(bytes.NewReader(wire))} {
			r := bufio.NewReader(src)
			for i, want := range side.frames {
				got, err := side.read(r)
				if err != nil || !reflect.DeepEqual(got, want) {
					t.Fatalf("%s %d: got %v, %v", side.name, i, got, err)
				}
			}
			if _, err := side.read(r); err != io.EOF { //nolint:errorlint // the readers promise io.EOF itself
				t.Errorf("%s: at the end: got %v, want io.EOF", side.name, err)
			}
		}
	}
}

// A frame that is cut off anywhere is neither the end of the stream nor a frame.
func TestFramesCut(t *testing.T) {
	for _, side := range readers() {
		for i, f := range side.frames {
			whole := AppendFrame(nil, f)
			for n := 1; n < len(whole); n += 1 + n/3 {
				if _, err := side.read(bufio.NewReader(bytes.NewReader(whole[:n]))); err != io.ErrUnexpectedEOF { //nolint:errorlint // the readers promise it itself
					t.Fatalf("%s %d cut to %d bytes: got %v", side.name, i, n, err)
				}
			}
		}
	}
	broken := bufio.NewReader(iotest.ErrReader(io.ErrClosedPipe))
	if _, err := ReadRequest(broken); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a broken stream: got %v", err)
	}
}

// frame puts a length before a type and a body.
func frame(t Type, body ...[]byte) []byte {
	b := append([]byte{byte(t)}, slices.Concat(body...)...)
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

func u64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
func u16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// One encoding of one frame, and nothing that no honest side sends
// (docs/spec/mailbox.md, section 3).
func TestF07_CanonicalFrames(t *testing.T) {
	zeros := func(n int) []byte { return make([]byte, n) }
	tag := func(first, class byte) []byte { return append(append([]byte{first}, zeros(15)...), class) }
	item := func(id uint64, k byte, n int) []byte { return slices.Concat(u64(id), []byte{k}, zeros(n)) }
	page := func(items ...[]byte) []byte { return frame(TypePage, append([][]byte{{0}}, items...)...) }
	many := func(n int, k byte, size int) (items [][]byte) {
		for i := range n {
			items = append(items, item(uint64(i+1), k, size))
		}
		return items
	}
	var manyTags, manyIDs []byte
	for i := range 2 * MaxTags {
		manyTags = slices.Concat(manyTags, u64(uint64(i)), zeros(8), []byte{byte(ClassContact)})
		manyIDs = append(manyIDs, u64(uint64(i+1))...)
	}
	tests := []struct {
		name string
		side int // 0: a node reads it, 1: a client
		wire []byte
		ok   bool
	}{
		{"length 0", 0, []byte{0}, false},
		{"length 0 in two bytes", 0, []byte{0x80, 0}, false},
		{"padded length", 0, append([]byte{0x8b, 0}, frame(TypeCollect, zeros(10))[1:]...), false},
		{"length in four bytes", 0, []byte{0x81, 0x80, 0x80, 1, byte(TypeCollect)}, false},
		{"a length without end", 0, []byte{0x81, 0x80, 0x80}, false},
		{"longest length", 1, []byte{0xff, 0xff, 0x7f}, false},
		{"longer than a deposit", 0, binary.AppendUvarint(nil, maxRequest+1), false},
		{"longer than a page", 1, binary.AppendUvarint(nil, maxAnswer+1), false},
		{"type 0", 0, frame(0, zeros(10)), false},
		{"type 6", 0, frame(6, zeros(10)), false},
		{"type 63 from a client", 0, frame(63, zeros(10)), false},
		{"type 63 from a node", 1, frame(63, zeros(10)), false},
		{"type 71", 1, frame(71, zeros(10)), false},
		{"type 255", 1, frame(255, zeros(10)), false},
		{"a client's hello", 0, frame(TypeHello, zeros(35)), false},
		{"a node's collect", 1, frame(TypeCollect, zeros(10)), false},

		{"deposit of nothing", 0, frame(TypeDeposit), false},
		{"deposit of 1025 bytes", 0, frame(TypeDeposit, zeros(1025)), false},
		{"deposit of 1536 bytes", 0, frame(TypeDeposit, zeros(1536)), false},
		{"deposit of 512 bytes", 0, frame(TypeDeposit, zeros(512)), false},
		{"deposit", 0, frame(TypeDeposit, zeros(1024)), true},

		{"audit too short", 0, frame(TypeAudit, zeros(79)), false},
		{"audit too long", 0, frame(TypeAudit, zeros(81)), false},
		{"audit", 0, frame(TypeAudit, zeros(80)), true},

		{"open too short", 0, frame(TypeOpen, zeros(96)), false},
		{"open too long", 0, frame(TypeOpen, zeros(98)), false},
		{"open, create 2", 0, frame(TypeOpen, zeros(32), []byte{2}, zeros(64)), false},
		{"open", 0, frame(TypeOpen, zeros(97)), true},

		{"tags too short", 0, frame(TypeTags, zeros(8)), false},
		{"tags, a byte over", 0, frame(TypeTags, u64(1), zeros(2)), false},
		{"tags, generation 0", 0, frame(TypeTags, u64(0), zeros(1)), false},
		{"tags, prune 2", 0, frame(TypeTags, u64(1), []byte{2}), false},
		{"tags, class 0", 0, frame(TypeTags, u64(1), zeros(1), tag(1, 0)), false},
		{"tags, class 3", 0, frame(TypeTags, u64(1), zeros(1), tag(1, 3)), false},
		{"tags twice", 0, frame(TypeTags, u64(1), zeros(1), tag(1, 1), tag(1, 1)), false},
		{"tags twice, in two classes", 0, frame(TypeTags, u64(1), zeros(1), tag(1, 1), tag(1, 2)), false},
		{"tags descending", 0, frame(TypeTags, u64(1), zeros(1), tag(2, 1), tag(1, 1)), false},
		{"1025 tags", 0, frame(TypeTags, slices.Concat(u64(1), zeros(1), manyTags[:17*1025])), false},
		{"1024 tags", 0, frame(TypeTags, slices.Concat(u64(1), zeros(1), manyTags[:17*1024])), true},
		{"tags", 0, frame(TypeTags, u64(1), zeros(1), tag(1, 1), tag(2, 2)), true},

		{"collect too short", 0, frame(TypeCollect, zeros(9)), false},
		{"collect, a byte over", 0, frame(TypeCollect, zeros(11)), false},
		{"collect, wait too long", 0, frame(TypeCollect, u64(0), u16(601)), false},
		{"collect, wait far too long", 0, frame(TypeCollect, u64(0), u16(65535)), false},
		{"collect, id 0", 0, frame(TypeCollect, zeros(10), u64(0)), false},
		{"collect, id twice", 0, frame(TypeCollect, zeros(10), u64(1), u64(1)), false},
		{"collect, ids descending", 0, frame(TypeCollect, zeros(10), u64(2), u64(1)), false},
		{"collect, 65 ids", 0, frame(TypeCollect, zeros(10), manyIDs[:8*65]), false},
		{"collect, 64 ids", 0, frame(TypeCollect, zeros(10), manyIDs[:8*64]), true},
		{"collect", 0, frame(TypeCollect, u64(0), u16(600), u64(1), u64(2)), true},

		{"hello too short", 1, frame(TypeHello, zeros(34)), false},
		{"hello too long", 1, frame(TypeHello, zeros(36)), false},
		{"hello, draining 2", 1, frame(TypeHello, zeros(32), []byte{2}, zeros(2)), false},
		{"hello", 1, frame(TypeHello, zeros(35)), true},

		{"stored too short", 1, frame(TypeStored, zeros(65)), false},
		{"stored too long", 1, frame(TypeStored, zeros(67)), false},
		{"stored", 1, frame(TypeStored, zeros(66)), true},
		{"proof too short", 1, frame(TypeProof, zeros(31)), false},
		{"proof too long", 1, frame(TypeProof, zeros(33)), false},
		{"proof", 1, frame(TypeProof, zeros(32)), true},
		{"opened too short", 1, frame(TypeOpened, zeros(31)), false},
		{"opened too long", 1, frame(TypeOpened, zeros(33)), false},
		{"opened", 1, frame(TypeOpened, zeros(32)), true},
		{"registered too short", 1, frame(TypeRegistered, zeros(11)), false},
		{"registered too long", 1, frame(TypeRegistered, zeros(13)), false},
		{"registered", 1, frame(TypeRegistered, zeros(12)), true},

		{"page of nothing at all", 1, frame(TypePage), false},
		{"page, more 2", 1, frame(TypePage, []byte{2}, item(1, 0, 1024)), false},
		{"empty page, and more", 1, frame(TypePage, []byte{1}), false},
		{"page, id 0", 1, page(item(0, 0, 1024)), false},
		{"page, id twice", 1, page(item(1, 0, 1024), item(1, 0, 1024)), false},
		{"page, ids descending", 1, page(item(2, 0, 1024), item(1, 0, 1024)), false},
		{"page, envelope cut short", 1, page(item(1, 0, 1023)), false},
		{"page, envelope of another size", 1, page(item(1, 1, 1024)), false},
		{"page, a byte over", 1, page(item(1, 0, 1025)), false},
		{"page, k = 8", 1, page(item(1, 8, 256<<10)), false},
		{"page, k = 64", 1, page(item(1, 64, 1024)), false},
		{"page, k = 255", 1, page(item(1, 255, 1024)), false},
		{"page, 65 envelopes", 1, page(many(65, 0, 1024)...), false},
		{"page, more than 1 MiB", 1, page(append(many(7, 7, 128<<10), item(8, 6, 64<<10), item(9, 6, 64<<10), item(10, 0, 1024))...), false},
		{"page", 1, page(many(64, 4, 16<<10)...), true},

		{"refused too short", 1, frame(TypeRefused, zeros(2)), false},
		{"refused too long", 1, frame(TypeRefused, zeros(4)), false},
		{"refused for no reason", 1, frame(TypeRefused, []byte{0, 0, 0}), false},
		{"refused for reason 8", 1, frame(TypeRefused, []byte{8, 0, 0}), false},
		{"busy for too long", 1, frame(TypeRefused, []byte{3}, u16(601)), false},
		{"unknown, with a wait", 1, frame(TypeRefused, []byte{1}, u16(1)), false},
		{"busy", 1, frame(TypeRefused, []byte{3}, u16(600)), true},
	}
	for _, tt := range tests {
		got, err := readers()[tt.side].read(bufio.NewReader(bytes.NewReader(tt.wire)))
		switch {
		case !tt.ok && !errors.Is(err, protocol.ErrFrame):
			t.Errorf("%s: got %v, want %v", tt.name, err, protocol.ErrFrame)
		case tt.ok && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.ok && !bytes.Equal(AppendFrame(nil, got), tt.wire):
			t.Errorf("%s: written anew it differs", tt.name)
		}
	}
}

func TestAppendFramePanics(t *testing.T) {
	small := make([]byte, protocol.MinEnvelope)
	tags, ids, items := make([]Registration, MaxTags+1), make([]uint64, MaxItems+1), make([]Item, MaxItems+1)
	for i := range tags {
		tags[i] = Registration{envelope.Tag(append(u64(uint64(i)), u64(0)...)), ClassContact}
	}
	for i := range ids {
		ids[i], items[i] = uint64(i+1), Item{uint64(i + 1), small}
	}
	for name, f := range map[string]Frame{
		"no envelope":            &Deposit{},
		"odd envelope":           &Deposit{make([]byte, 1500)},
		"too much envelope":      &Deposit{make([]byte, 2*protocol.MaxEnvelope)},
		"generation 0":           &Tags{},
		"too many tags":          &Tags{Generation: 1, Tags: tags},
		"no class":               &Tags{Generation: 1, Tags: make([]Registration, 1)},
		"tags out of order":      &Tags{Generation: 1, Tags: []Registration{{envelope.Tag{2}, ClassContact}, {envelope.Tag{1}, ClassContact}}},
		"part of a second":       &Collect{Wait: time.Second + 1},
		"too long a wait":        &Collect{Wait: MaxWait + time.Second},
		"a wait that is over":    &Collect{Wait: -time.Second},
		"too many ids":           &Collect{Done: ids},
		"ids out of order":       &Collect{Done: []uint64{2, 1}},
		"no id":                  &Page{Items: []Item{{0, small}}},
		"empty item":             &Page{Items: []Item{{1, nil}}},
		"odd item":               &Page{Items: []Item{{1, small[1:]}}},
		"too much item":          &Page{Items: []Item{{1, make([]byte, 2*protocol.MaxEnvelope)}}},
		"too many items":         &Page{Items: items},
		"items out of order":     &Page{Items: []Item{{2, small}, {1, small}}},
		"more of nothing":        &Page{More: true},
		"no reason":              &Refused{},
		"unknown reason":         &Refused{Why: RefusedLimit + 1},
		"a wait without reason":  &Refused{Why: RefusedFull, Wait: time.Second},
		"a pause beyond a limit": &Refused{Why: RefusedBusy, Wait: MaxWait + time.Second},
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

// checkMemory wants fn to take at most limit bytes. The runtime allocates, too,
// so only what happens again and again counts.
func checkMemory(t *testing.T, what string, limit int, fn func()) {
	t.Helper()
	var before, after runtime.MemStats
	for range 5 {
		runtime.ReadMemStats(&before)
		fn()
		runtime.ReadMemStats(&after)
		if after.TotalAlloc-before.TotalAlloc <= uint64(limit) {
			return
		}
	}
	t.Errorf("%s takes %d bytes of memory, want at most %d", what, after.TotalAlloc-before.TotalAlloc, limit)
}

// F06, G10: a length beyond the limit costs no memory at all, and one within it
// no more than what arrives.
func TestF06_HugeFrame(t *testing.T) {
	read := func(side reader, what string, wire []byte, limit int) (err error) {
		src := bytes.NewReader(nil)
		r := bufio.NewReader(src)
		checkMemory(t, side.name+": "+what, limit, func() {
			src.Reset(wire)
			r.Reset(src)
			_, err = side.read(r)
		})
		return err
	}
	for _, tt := range []struct {
		side  reader
		limit uint64
		typ   Type
	}{{readers()[0], maxRequest, TypeDeposit}, {readers()[1], maxAnswer, TypePage}} {
		for _, length := range []uint64{tt.limit + 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
			wire := append(binary.AppendUvarint(nil, length), byte(tt.typ))
			if err := read(tt.side, "too long a claim", wire, 128); !errors.Is(err, protocol.ErrFrame) {
				t.Errorf("%s: a claim of %d bytes: got %v", tt.side.name, length, err)
			}
		}
		wire := append(binary.AppendUvarint(nil, tt.limit), byte(tt.typ))
		if err := read(tt.side, "the longest claim and 100 bytes", append(wire, make([]byte, 100)...), 2*protocol.FirstRead); err == nil {
			t.Errorf("%s: read a frame that is not there", tt.side.name)
		}
		for i, f := range tt.side.frames {
			wire := AppendFrame(nil, f)
			for _, wire := range [][]byte{wire, wire[:len(wire)-1]} {
				what := fmt.Sprintf("%d bytes of frame %d", len(wire), i)
				if err := read(tt.side, what, wire, 4*len(wire)+64<<10); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%s: %s: %v", tt.side.name, what, err)
				}
			}
		}
	}
}

// G06: a request to open is good for its owner, at one node, on one stream, for
// what it says, and nothing else (docs/spec/mailbox.md, section 5).
func TestG06_OpenIsBound(t *testing.T) {
	nonce := Nonce{5}
	good := SignOpen(&boxKey, nodeKey, nonce, true)
	if !good.Verify(nodeKey, nonce) {
		t.Fatal("an honest request does not verify")
	}
	if good.Box != boxKey.ID() {
		t.Error("the request names another box")
	}
	thief := BoxKey{10}
	stolen := SignOpen(&thief, nodeKey, nonce, true)
	stolen.Box = good.Box
	for name, tt := range map[string]struct {
		open  Open
		node  [32]byte
		nonce Nonce
	}{
		"another node":      {*good, [32]byte{1}, nonce},
		"another nonce":     {*good, nodeKey, Nonce{6}},
		"no nonce":          {*good, nodeKey, Nonce{}},
		"without create":    {Open{good.Box, false, good.Signature}, nodeKey, nonce},
		"another box":       {Open{thief.ID(), true, good.Signature}, nodeKey, nonce},
		"a thief's":         {*stolen, nodeKey, nonce},
		"no signature":      {Open{Box: good.Box, Create: true}, nodeKey, nonce},
		"node and nonce":    {*good, nonce, Nonce(nodeKey)},
		"a node's receipt":  {Open{nodeKey, true, SignStored(node, newEnvelope(1, protocol.MinEnvelope), 1).Signature}, nodeKey, nonce},
		"no box whatsoever": {Open{}, nodeKey, nonce},
	} {
		if tt.open.Verify(tt.node, tt.nonce) {
			t.Errorf("%s: verifies", name)
		}
	}
	for at := range good.Signature {
		bad := *good
		bad.Signature[at] ^= 1
		if bad.Verify(nodeKey, nonce) {
			t.Fatalf("verifies with byte %d of the signature changed", at)
		}
	}
}

// G09: a receipt is one node's, for one envelope and one duration
// (docs/spec/mailbox.md, section 4).
func TestG09_StoredIsBound(t *testing.T) {
	env := newEnvelope(1, protocol.MinEnvelope)
	good := SignStored(node, env, 720)
	if !good.Verify(nodeKey, env) {
		t.Fatal("an honest receipt does not verify")
	}
	for _, hours := range []uint16{0, 719, 721, 1<<16 - 1} {
		if (&Stored{hours, good.Signature}).Verify(nodeKey, env) {
			t.Errorf("the receipt is good for %d hours, too", hours)
		}
	}
	other := [32]byte(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
	if good.Verify(other, env) {
		t.Error("the receipt is another node's, too")
	}
	for at := range env {
		env[at] ^= 1
		if good.Verify(nodeKey, env) {
			t.Fatalf("the receipt is good with byte %d of the envelope changed", at)
		}
		env[at] ^= 1
	}
	if good.Verify(nodeKey, append(env, env...)) || good.Verify(nodeKey, env[:512]) || good.Verify(nodeKey, nil) {
		t.Error("the receipt is good for an envelope of another length")
	}
	if bare := (&Stored{720, [64]byte(ed25519.Sign(node, storedMessage(DigestOf(env), 720)[len(protocol.LabelMailboxStored):]))}); bare.Verify(nodeKey, env) {
		t.Error("a signature without the label is a receipt")
	}
}

// G09: a proof is for one envelope, all of it, and for one question
// (docs/spec/mailbox.md, section 4).
func TestG09_ProofIsBound(t *testing.T) {
	env, nonce := newEnvelope(1, protocol.MinEnvelope), Nonce{1}
	audit := AuditFor(env, nonce)
	if !bytes.Equal(audit.Tag[:], env[:envelope.TagSize]) || audit.Digest != DigestOf(env) || audit.Nonce != nonce {
		t.Error("the audit asks for something else")
	}
	good := Prove(env, nonce)
	if !good.Verify(env, nonce) {
		t.Fatal("an honest proof does not verify")
	}
	for at := range nonce {
		bad := nonce
		bad[at] ^= 1
		if good.Verify(env, bad) {
			t.Fatalf("the proof answers a question with byte %d changed", at)
		}
	}
	for at := range env {
		env[at] ^= 1
		if good.Verify(env, nonce) {
			t.Fatalf("the proof is good with byte %d of the envelope changed", at)
		}
		env[at] ^= 1
	}
	for at := range good.MAC {
		bad := *good
		bad.MAC[at] ^= 1
		if bad.Verify(env, nonce) {
			t.Fatalf("the proof is good with its own byte %d changed", at)
		}
	}
	d := DigestOf(env)
	if (&Proof{d}).Verify(env, nonce) || (&Proof{Prove(d[:], nonce).MAC}).Verify(env, nonce) {
		t.Error("who has the digest alone can prove")
	}
}

func TestRedaction(t *testing.T) {
	key := BoxKey(bytes.Repeat([]byte{0xab}, 32))
	if b, err := json.Marshal(key); err == nil {
		t.Errorf("a box key is %s in JSON", b)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%d", "%q"} {
		for _, v := range []any{key, &key, struct{ K BoxKey }{key}} {
			got := strings.ToLower(fmt.Sprintf(verb, v))
			if strings.Contains(got, "abab") || strings.Contains(got, "171") || strings.Contains(got, "0xab") {
				t.Errorf("a box key shows under %s", verb)
			}
		}
	}
}

// address is one of a node, n bytes long, n > 41.
func address(n int, key byte) []byte {
	return slices.Concat(bytes.Repeat([]byte{4}, n-41), []byte(peer), bytes.Repeat([]byte{key}, 32))
}

func sets() []Set {
	return []Set{
		{},
		{Version: 1, Nodes: [][]byte{address(49, 1)}},
		{Version: 1<<64 - 1, Nodes: [][]byte{address(42, 1), address(49, 2), address(255, 3), address(100, 4), address(50, 5)}},
	}
}

func TestSet(t *testing.T) {
	for i, s := range sets() {
		b, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseSet(b)
		if err != nil || !reflect.DeepEqual(*got, s) {
			t.Errorf("set %d: got %v, %v", i, got, err)
		}
		for n := range len(b) {
			if p, err := ParseSet(b[:n]); err == nil && len(p.Nodes) == len(s.Nodes) {
				t.Errorf("set %d, cut to %d bytes, is whole", i, n)
			}
		}
	}
}

// Every set, and every peer id, that docs/spec/mailbox.md, sections 10 and 2, do
// not allow.
func TestF07_Set(t *testing.T) {
	one := address(49, 1)
	short := slices.Clone(one)
	short[len(short)-36]++ // a longer key than there is
	for name, nodes := range map[string][][]byte{
		"an empty address":          {{}},
		"a second one empty":        {one, nil},
		"no node":                   {bytes.Repeat([]byte{4}, 60)},
		"something after the node":  {append(slices.Clone(one), 0)},
		"another kind of key":       {short},
		"a node twice":              {one, one},
		"a node twice, in two ways": {one, address(50, 1)},
		"twice with one between":    {one, address(49, 2), one},
		"six nodes":                 {address(49, 1), address(49, 2), address(49, 3), address(49, 4), address(49, 5), address(49, 6)},
		"an address of 256 bytes":   {address(256, 1)},
	} {
		s := &Set{Version: 1, Nodes: nodes}
		if b, err := s.Marshal(); !errors.Is(err, errSet) || b != nil {
			t.Errorf("%s: Marshal: %v", name, err)
		}
		wire := append([]byte{setVersion}, u64(1)...)
		for _, n := range nodes {
			wire = append(append(wire, byte(len(n))), n...)
		}
		if got, err := ParseSet(wire); !errors.Is(err, errSet) || got != nil {
			t.Errorf("%s: ParseSet: %v", name, err)
		}
	}
	alone := &Set{Version: 1, Nodes: [][]byte{address(42, 1)[1:]}} // for those who know a way
	if b, err := alone.Marshal(); err != nil {
		t.Error("a node and no way to it:", err)
	} else if _, err := ParseSet(b); err != nil {
		t.Error("a node and no way to it:", err)
	}
	crowd := append(append([]byte{setVersion}, u64(1)...), make([]byte, 1<<16)...)
	checkMemory(t, "a set of as many addresses as fit", 4<<10, func() { _, _ = ParseSet(crowd) })
	for name, wire := range map[string][]byte{
		"nothing":              {},
		"version 0":            append([]byte{0}, u64(1)...),
		"version 2":            append([]byte{2}, u64(1)...),
		"half a number":        {setVersion, 0, 0, 0},
		"an address cut short": append(append([]byte{setVersion}, u64(1)...), 49, 4),
		"a byte over":          append(append(append([]byte{setVersion}, u64(1)...), 49), append(one, 0)...),
	} {
		if got, err := ParseSet(wire); !errors.Is(err, errSet) || got != nil {
			t.Errorf("%s: ParseSet: %v", name, err)
		}
	}
}

func fuzzFrames(f *testing.F, side reader) {
	for _, frame := range side.frames {
		if wire := AppendFrame(nil, frame); len(wire) <= 4<<10 {
			f.Add(wire)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		in := bufio.NewReader(r)
		var got Frame
		var err error
		checkMemory(t, "a frame", 4*len(b)+64<<10, func() {
			r.Reset(b)
			in.Reset(r)
			got, err = side.read(in)
		})
		if err != nil {
			return
		}
		read := len(b) - r.Len() - in.Buffered()
		if again := AppendFrame(nil, got); !bytes.Equal(again, b[:read]) {
			t.Error("a frame has two encodings")
		}
	})
}

func FuzzReadRequest(f *testing.F) { fuzzFrames(f, reader{"request", ReadRequest, requests()}) }

func FuzzReadAnswer(f *testing.F) { fuzzFrames(f, reader{"answer", ReadAnswer, answers()}) }

func FuzzParseSet(f *testing.F) {
	for _, s := range sets() {
		b, err := s.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s *Set
		var err error
		checkMemory(t, "a set", 4*len(b)+64<<10, func() { s, err = ParseSet(b) })
		if err != nil {
			return
		}
		if again, err := s.Marshal(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("a set has two encodings: %v", err)
		}
	})
}

func TestVectors(t *testing.T) {
	type keyed struct {
		NodeSeed, Node, BoxSeed, Box       string
		Nonce, Envelope, Digest            string
		Hours                              uint16
		Stored, Proof, Open, OpenAndCreate string
	}
	type set struct {
		Number uint64
		Nodes  []string
		Set    string
	}
	var v struct {
		Keyed             []keyed
		Requests, Answers []string
		Sets              []set
	}
	h := hex.EncodeToString
	for n := range byte(2) {
		r := random(50 + n)
		seed := randomBytes(r, 32)
		key := ed25519.NewKeyFromSeed(seed)
		public := [32]byte(key.Public().(ed25519.PublicKey))
		box, nonce := BoxKey(randomBytes(r, 32)), Nonce(randomBytes(r, 32))
		id, env, hours := box.ID(), randomBytes(r, 1024<<n), 720+uint16(n)
		d, s, p := DigestOf(env), SignStored(key, env, hours), Prove(env, nonce)
		open, create := SignOpen(&box, public, nonce, false), SignOpen(&box, public, nonce, true)
		v.Keyed = append(v.Keyed, keyed{
			NodeSeed: h(seed), Node: h(public[:]), BoxSeed: h(box[:]), Box: h(id[:]), Nonce: h(nonce[:]), Envelope: h(env), Digest: h(d[:]),
			Hours: hours, Stored: h(s.Signature[:]), Proof: h(p.MAC[:]), Open: h(open.Signature[:]), OpenAndCreate: h(create.Signature[:]),
		})
	}
	for _, side := range []struct {
		frames []Frame
		out    *[]string
	}{{requests(), &v.Requests}, {answers(), &v.Answers}} {
		for _, f := range side.frames {
			if wire := AppendFrame(nil, f); len(wire) <= 4<<10 {
				*side.out = append(*side.out, h(wire))
			}
		}
	}
	for _, s := range sets() {
		b, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		out := set{Number: s.Version, Nodes: []string{}, Set: h(b)}
		for _, n := range s.Nodes {
			out.Nodes = append(out.Nodes, h(n))
		}
		v.Sets = append(v.Sets, out)
	}
	golden(t, "mailbox.json", v)
}

// The work of a node for a deposit, and of an owner for a page, of which the
// network and the disk are no part.
func BenchmarkDeposit(b *testing.B) {
	for _, n := range []int{protocol.MinEnvelope, protocol.MaxEnvelope} {
		env := newEnvelope(1, n)
		wire := AppendFrame(nil, &Deposit{env})
		b.Run(fmt.Sprintf("read/%dKiB", n>>10), func(b *testing.B) { benchmarkRead(b, ReadRequest, wire) })
		b.Run(fmt.Sprintf("receipt/%dKiB", n>>10), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				SignStored(node, env, 720)
			}
		})
		receipt := SignStored(node, env, 720)
		b.Run(fmt.Sprintf("verify/%dKiB", n>>10), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				if !receipt.Verify(nodeKey, env) {
					b.Fatal("the receipt does not verify")
				}
			}
		})
	}
}

func BenchmarkPage(b *testing.B) {
	page := &Page{More: true}
	for i := range uint64(MaxItems) {
		page.Items = append(page.Items, Item{i + 1, newEnvelope(byte(i), MaxPage/MaxItems)})
	}
	wire := AppendFrame(nil, page)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(len(wire)))
		b.ReportAllocs()
		var out []byte
		for b.Loop() {
			out = AppendFrame(out[:0], page)
		}
	})
	b.Run("read", func(b *testing.B) { benchmarkRead(b, ReadAnswer, wire) })
}

func benchmarkRead(b *testing.B, read func(*bufio.Reader) (Frame, error), wire []byte) {
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	src := bytes.NewReader(nil)
	r := bufio.NewReaderSize(src, 64<<10)
	for b.Loop() {
		src.Reset(wire)
		r.Reset(src)
		if _, err := read(r); err != nil {
			b.Fatal(err)
		}
	}
}
