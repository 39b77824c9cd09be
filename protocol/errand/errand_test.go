package errand

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol"
)

var update = flag.Bool("update", false, "rewrite the vectors in testdata")

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// examples are one frame of every type, with the smallest and largest lists.
func examples() []Frame {
	key := func(seed byte) Key { return Key(random(seed, 32)) }
	return []Frame{
		&Find{Keys: []Key{key(1)}},
		&Find{Keys: []Key{key(1), key(2), key(3)}},
		&Announce{Key: key(4), Record: random(5, protocol.RecordSize)},
		&Carry{Address: random(6, 40), Mail: random(7, 100)},
		&Records{},
		&Records{Records: []Record{{1, random(8, protocol.RecordSize)}, {2, random(9, protocol.RecordSize)}}},
		&Kept{Asked: 20, Stored: 10, Confirmed: 9},
		&Carried{Mail: random(10, 70)},
		&Refused{Why: RefusedLimit, After: time.Minute},
	}
}

func read(f Frame, b []byte) (Frame, error) {
	in := bufio.NewReader(bytes.NewReader(b))
	if f.Type() < firstAnswer {
		return ReadRequest(in)
	}
	return ReadAnswer(in)
}

// TestVectors follows docs/spec/errand.md, section 3.
func TestVectors(t *testing.T) {
	type vector struct {
		Type  Type   `json:"type"`
		Frame string `json:"frame"`
	}
	var got []vector
	for _, f := range examples() {
		wire := AppendFrame(nil, f)
		got = append(got, vector{f.Type(), hex.EncodeToString(wire)})
		back, err := read(f, wire)
		if err != nil {
			t.Errorf("type %d: %v", f.Type(), err)
			continue
		}
		if !bytes.Equal(AppendFrame(nil, back), wire) {
			t.Errorf("type %d does not come back as it was", f.Type())
		}
		if _, err := ReadRequest(bufio.NewReader(bytes.NewReader(wire))); (err == nil) != (f.Type() < firstAnswer) {
			t.Errorf("type %d as a request: %v", f.Type(), err)
		}
	}
	b, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, '\n')
	path := filepath.Join("testdata", "errand.json")
	if *update {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("%s: the code no longer produces the frozen vectors", path)
	}
}

func TestRefusedFrames(t *testing.T) {
	key, record := random(1, 32), random(2, protocol.RecordSize)
	frame := func(typ Type, body ...[]byte) []byte {
		all := append([]byte{byte(typ)}, bytes.Join(body, nil)...)
		var out []byte
		n := len(all)
		for n >= 0x80 {
			out = append(out, byte(n)|0x80)
			n >>= 7
		}
		return append(append(out, byte(n)), all...)
	}
	for name, wire := range map[string][]byte{
		"no key":               frame(TypeFind),
		"four keys":            frame(TypeFind, random(1, 4*32)),
		"half a key":           frame(TypeFind, key[:16]),
		"a key twice":          frame(TypeFind, key, key),
		"a short record":       frame(TypeAnnounce, key, record[:4095]),
		"a long record":        frame(TypeAnnounce, key, record, record[:1]),
		"no address":           frame(TypeCarry, []byte{0}, random(3, 10)),
		"nothing to carry":     frame(TypeCarry, []byte{3}, random(3, 3)),
		"address cut short":    frame(TypeCarry, []byte{9}, random(3, 3)),
		"too much to carry":    frame(TypeCarry, []byte{1, 1}, random(3, maxMail+1)),
		"a type of nobody":     frame(9, key),
		"no such record":       frame(TypeRecords, []byte{3}, record),
		"records out of order": frame(TypeRecords, []byte{1}, record, []byte{0}, record),
		"a record twice":       frame(TypeRecords, []byte{1}, record, []byte{1}, record),
		"confirmed too many":   frame(TypeKept, []byte{3, 2, 3}),
		"stored too many":      frame(TypeKept, []byte{1, 2, 1}),
		"no answer":            frame(TypeCarried),
		"a long answer":        frame(TypeCarried, random(3, maxMailAnswer+1)),
		"no reason":            frame(TypeRefused, []byte{0, 0, 1}),
		"a later reason":       frame(TypeRefused, []byte{5, 0, 1}),
		"an empty frame":       {0},
		"padding":              {0x81, 0x00},
	} {
		for side, read := range map[string]func(*bufio.Reader) (Frame, error){"request": ReadRequest, "answer": ReadAnswer} {
			if f, err := read(bufio.NewReader(bytes.NewReader(wire))); !errors.Is(err, protocol.ErrFrame) {
				t.Errorf("%s as %s: %v, %v", name, side, f, err)
			}
		}
	}
	if _, err := ReadRequest(bufio.NewReader(bytes.NewReader(nil))); !errors.Is(err, io.EOF) {
		t.Error("at the end:", err)
	}
	cut := AppendFrame(nil, examples()[2])
	if _, err := ReadRequest(bufio.NewReader(bytes.NewReader(cut[:100]))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("cut short:", err)
	}
}

func fuzz(f *testing.F, read func(*bufio.Reader) (Frame, error)) {
	for _, e := range examples() {
		f.Add(AppendFrame(nil, e))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		r := bufio.NewReaderSize(in, 16)
		got, err := read(r)
		if err != nil {
			return
		}
		used := b[:len(b)-in.Len()-r.Buffered()]
		if again := AppendFrame(nil, got); !bytes.Equal(again, used) {
			t.Errorf("%x was read, and is written as %x", used, again)
		}
	})
}

// FuzzReadRequest and FuzzReadAnswer want every frame that is read to be written
// back the same.
func FuzzReadRequest(f *testing.F) { fuzz(f, ReadRequest) }

func FuzzReadAnswer(f *testing.F) { fuzz(f, ReadAnswer) }
