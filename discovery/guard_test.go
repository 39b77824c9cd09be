package discovery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"google.golang.org/protobuf/proto"
)

func frame(body []byte) []byte { return append(binary.AppendUvarint(nil, uint64(len(body))), body...) }

// peers encodes a message that names count peers with addrs addresses each.
func peers(t testing.TB, count, addrs int) []byte {
	m := &pb.Message{Type: pb.Message_FIND_NODE, Key: make([]byte, 38)}
	for range count {
		p := &pb.Message_Peer{Id: make([]byte, 38), Connection: 1}
		for range addrs {
			p.Addrs = append(p.Addrs, make([]byte, 8))
		}
		m.CloserPeers = append(m.CloserPeers, p)
	}
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// The rules of docs/spec/discovery.md, section 3, in both directions.
func TestGuardFrames(t *testing.T) {
	large := frame(make([]byte, maxFrame))
	for _, tc := range []struct {
		name string
		in   []byte
		want error
		out  int // bytes handed out before the error
	}{
		{"nothing", nil, io.EOF, 0},
		{"empty frame", []byte{0}, io.EOF, 1},
		{"two frames", append(frame([]byte{8, 1}), frame([]byte{8, 2})...), io.EOF, 6},
		{"largest", large, io.EOF, len(large)},
		{"too large", frame(make([]byte, maxFrame+1)), errFrameSize, 0},
		{"claims 2^63", []byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1}, errFrameSize, 0},
		{"length not minimal", []byte{0x81, 0x00, 8}, errFrameSize, 0},
		{"length cut off", []byte{0x80}, io.ErrUnexpectedEOF, 0},
		{"frame cut off", []byte{5, 8, 1}, io.ErrUnexpectedEOF, 0},
		{"good, then too large", append([]byte{2, 8, 1}, 0xff, 0xff, 0x7f), errFrameSize, 3},
		{"honest answer", frame(peers(t, 21, 8)), io.EOF, len(frame(peers(t, 21, 8)))},
		{"empty elements", frame(bytes.Repeat([]byte{0x42, 0}, 32<<10)), errFrameElements, 0},
		{"empty providers", frame(bytes.Repeat([]byte{0x4a, 0}, 32<<10)), errFrameElements, 0},
		{"empty addresses of a peer", frame(peers(t, 1, maxElements)), errFrameElements, 0},
		{"one address too many", frame(peers(t, 20, maxElements/20)), errFrameElements, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for name, r := range map[string]io.Reader{
				"whole": bytes.NewReader(tc.in), "byte by byte": iotest.OneByteReader(bytes.NewReader(tc.in)),
			} {
				f := frameReader{r: r}
				var out bytes.Buffer
				_, err := io.Copy(&out, &f)
				if err == nil {
					err = io.EOF
				}
				if !errors.Is(err, tc.want) {
					t.Errorf("%s: got %v, want %v", name, err, tc.want)
				}
				if !bytes.Equal(out.Bytes(), tc.in[:tc.out]) {
					t.Errorf("%s: handed out %d bytes, want the first %d", name, out.Len(), tc.out)
				}
				if _, again := f.Read(make([]byte, 1)); !errors.Is(again, tc.want) {
					t.Errorf("%s: reading on gives %v", name, again)
				}
			}
		})
	}
}

// TestF06_LengthsAllocateNothing: what a length claims is not allocated.
func TestF06_LengthsAllocateNothing(t *testing.T) {
	claim := append(binary.AppendUvarint(nil, maxFrame), 8)
	allocated := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f := frameReader{r: bytes.NewReader(claim)}
			_, _ = io.Copy(io.Discard, struct{ io.Reader }{&f})
		}
	}).AllocedBytesPerOp()
	if allocated > 64<<10 { // io.Copy's own buffer is half of it
		t.Errorf("a claim of %d bytes cost %d", maxFrame, allocated)
	}
}

func FuzzGuard(f *testing.F) {
	f.Add([]byte{0}, uint8(1))
	f.Add(frame(peers(f, 3, 2)), uint8(7))
	f.Add(append(frame(peers(f, 1, 1)), 0x81, 0x80, 0x04), uint8(255))
	f.Add(frame(bytes.Repeat([]byte{0x42, 0}, 2000)), uint8(64))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		r := frameReader{r: bytes.NewReader(in)}
		var out []byte
		buf := make([]byte, int(step)+1)
		var err error
		for err == nil {
			var n int
			n, err = r.Read(buf)
			out = append(out, buf[:n]...)
		}
		if !bytes.HasPrefix(in, out) {
			t.Fatal("the guard changed what it read")
		}
		// What came through is whole frames within the limits, as kad-dht parses them.
		for rest := out; len(rest) > 0; {
			size, n := binary.Uvarint(rest)
			if n <= 0 || size > maxFrame || int(size) > len(rest)-n {
				t.Fatalf("let through a frame of %d bytes", size)
			}
			var m pb.Message
			if proto.Unmarshal(rest[n:n+int(size)], &m) == nil {
				elements := len(m.CloserPeers) + len(m.ProviderPeers)
				for _, p := range append(m.CloserPeers, m.ProviderPeers...) {
					elements += len(p.GetAddrs())
				}
				if elements > maxElements {
					t.Fatalf("let through %d elements", elements)
				}
			}
			rest = rest[n+int(size):]
		}
	})
}
