package store

import (
	"bytes"
	"context"
	"testing"
)

// What is carried for others is kept once, up to a number, in its order, until
// its age.
func TestCarried(t *testing.T) {
	e := testEngine()
	e.schema = migrations
	s := openTest(t, t.TempDir(), e)
	carry := func(b byte, erase int64) (here, added bool) {
		t.Helper()
		if err := s.Update(context.Background(), func(tx *Tx) (err error) {
			here, added, err = tx.Carry([]byte{b}, bytes.Repeat([]byte{b}, 100), erase, 3)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return here, added
	}
	carried := func() (all []byte) {
		t.Helper()
		if err := s.View(context.Background(), func(tx *Tx) error {
			all = nil
			for after := int64(0); ; {
				rows, err := tx.Carried(after, 2)
				if err != nil || len(rows) == 0 {
					return err
				}
				for _, r := range rows {
					all, after = append(all, r.Part[0]), r.ID
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	for _, c := range []struct {
		part        byte
		here, added bool
	}{{3, true, true}, {1, true, true}, {3, true, false}, {2, true, true}, {9, false, false}, {1, true, false}} {
		if here, added := carry(c.part, int64(c.part)); here != c.here || added != c.added {
			t.Errorf("part %d: here %v, added %v; want %v, %v", c.part, here, added, c.here, c.added)
		}
	}
	if got := carried(); !bytes.Equal(got, []byte{3, 1, 2}) {
		t.Errorf("carried are %v, want 3, 1, 2", got)
	}
	if err := s.Update(context.Background(), func(tx *Tx) error { return tx.EraseCarried(2) }); err != nil {
		t.Fatal(err)
	}
	if got := carried(); !bytes.Equal(got, []byte{3}) {
		t.Errorf("carried are %v, want 3", got)
	}
}
