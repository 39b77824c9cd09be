package node

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/kith-im/kith/node/store"
)

// TestWaysShare follows docs/spec/rendezvous.md, section 6: each contact is told
// of a few bridges, always the same, and no bridge is known to all.
func TestWaysShare(t *testing.T) {
	var all [][]byte
	for i := range 8 {
		all = append(all, []byte{byte(i + 1), 7})
	}
	const contacts = 200
	told := make(map[byte]int)
	for i := range contacts {
		c := store.ContactRow{Handle: fmt.Sprintf("handle%d", i)}
		part := share(c, all)
		if len(part) != waysPerContact {
			t.Fatalf("a contact is told of %d bridges", len(part))
		}
		// Another order, and one bridge more or less, leave the rest in place.
		again := share(c, append(all[4:8:8], all[:4]...))
		for j := range part {
			if !bytes.Equal(part[j], again[j]) {
				t.Error("the part depends on the order")
			}
			told[part[j][0]]++
		}
		fewer := share(c, all[:7])
		for _, a := range part {
			if a[0] != all[7][0] && !bytes.Equal(a, fewer[0]) && !bytes.Equal(a, fewer[1]) {
				t.Error("a bridge that is gone changed more than its own place")
			}
		}
	}
	for a, n := range told {
		if n > contacts/2 {
			t.Errorf("bridge %d is known to %d of %d contacts", a, n, contacts)
		}
	}
	if n := len(share(store.ContactRow{Handle: "x"}, all[:1])); n != 1 {
		t.Errorf("of one bridge, a contact is told of %d", n)
	}
}

func TestWaysKept(t *testing.T) {
	for _, all := range [][][]byte{nil, {{1}}, {{1, 2}, {3}, bytes.Repeat([]byte{9}, 255)}} {
		back := splitAddresses(joinAddresses(all))
		if len(back) != len(all) {
			t.Fatalf("%x came back as %x", all, back)
		}
		for i := range all {
			if !bytes.Equal(all[i], back[i]) {
				t.Errorf("%x came back as %x", all[i], back[i])
			}
		}
	}
	if got := splitAddresses([]byte{5, 1}); len(got) != 0 {
		t.Errorf("cut short: %x", got)
	}
}
