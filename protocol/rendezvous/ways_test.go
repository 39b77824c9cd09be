package rendezvous

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/kith-im/kith/protocol"
)

func wayLists() [][][]byte {
	long := bytes.Repeat([]byte{7}, protocol.MaxAddress)
	return [][][]byte{nil, {{1}}, {{2, 3}, {1}}, {long, {1}, {2}}}
}

// TestWays follows docs/spec/rendezvous.md, section 6.
func TestWays(t *testing.T) {
	var vectors []string
	for _, ways := range wayLists() {
		b, err := MarshalWays(ways)
		if err != nil {
			t.Fatal(err)
		}
		vectors = append(vectors, hex.EncodeToString(b))
		back, err := ParseWays(b)
		if err != nil || len(back) != len(ways) {
			t.Fatalf("%x: %v, %v", b, back, err)
		}
		for i := range ways {
			if !bytes.Equal(back[i], ways[i]) {
				t.Errorf("%x comes back as %x", ways[i], back[i])
			}
		}
	}
	golden(t, "ways.json", vectors)
	for name, ways := range map[string][][]byte{
		"too many": {{1}, {2}, {3}, {4}}, "empty": {{}}, "twice": {{1}, {1}},
		"too long": {make([]byte, protocol.MaxAddress+1)},
	} {
		if b, err := MarshalWays(ways); err == nil {
			t.Errorf("%s: %x", name, b)
		}
	}
	for name, b := range map[string][]byte{
		"cut short": {2, 1}, "too many": {1, 1, 1, 2, 1, 3, 1, 4}, "empty": {0}, "twice": {1, 1, 1, 1},
	} {
		if ways, err := ParseWays(b); err == nil {
			t.Errorf("%s: %x", name, ways)
		}
	}
}

func FuzzWays(f *testing.F) {
	for _, ways := range wayLists() {
		b, err := MarshalWays(ways)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ways, err := ParseWays(b)
		if err != nil {
			return
		}
		if again, err := MarshalWays(ways); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is written as %x, %v", b, again, err)
		}
	})
}
