package store

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"testing"
	"testing/fstest"
)

// told is what Bridges returns, in short: who told of which bridge.
func told(t *testing.T, s *Store) (out []string) {
	t.Helper()
	if err := s.View(context.Background(), func(tx *Tx) error {
		out = nil
		rows, err := tx.Bridges()
		for _, b := range rows {
			out = append(out, fmt.Sprint(b.Address, b.Source, b.Contact))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestBridgesOfSeveral: a bridge is known for as long as anybody who told of it
// neither takes it back nor is removed.
func TestBridgesOfSeveral(t *testing.T) {
	e := testEngine()
	e.schema = migrations
	s := openTest(t, t.TempDir(), e)
	var does string
	do := func(what string, fn func(*Tx) error, want ...string) {
		t.Helper()
		if err := s.Update(context.Background(), fn); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := told(t, s); !slices.Equal(got, want) {
			t.Errorf("%s, %s: known are %q, want %q", does, what, got, want)
		}
	}
	tells := func(address string, source BridgeSource, contact, added int64) func(*Tx) error {
		return func(tx *Tx) error {
			return tx.SaveBridge(BridgeRow{Address: address, Source: source, Contact: contact, Added: added})
		}
	}
	for _, gone := range []struct {
		name string
		how  func(tx *Tx, contact int64) error
	}{
		{"taken back", (*Tx).DeleteBridgesOf},
		{"removed", (*Tx).DeleteContact},
	} {
		does = gone.name
		var a, b int64
		for i, id := range []*int64{&a, &b} {
			do("a contact", func(tx *Tx) (err error) {
				*id, err = tx.CreateContact(ContactRow{Handle: fmt.Sprint(gone.name, i)})
				return err
			})
		}
		byAlice, byBob := fmt.Sprint("X", BridgeFromContact, a), fmt.Sprint("X", BridgeFromContact, b)
		do("one tells", tells("X", BridgeFromContact, a, 1), byAlice)
		do("and again", tells("X", BridgeFromContact, a, 2), byAlice)
		do("the other tells of the same", tells("X", BridgeFromContact, b, 3), byBob)
		do("which is gone", func(tx *Tx) error { return gone.how(tx, b) }, byAlice)
		do("an invite names it", tells("X", BridgeFromInvite, 0, 4), fmt.Sprint("X", BridgeFromInvite, 0))
		do("the user does", tells("X", BridgeFromUser, 0, 5), fmt.Sprint("X", BridgeFromUser, 0))
		do("and another invite", tells("X", BridgeFromInvite, 0, 6), fmt.Sprint("X", BridgeFromUser, 0))
		do("the first is gone as well", func(tx *Tx) error { return gone.how(tx, a) }, fmt.Sprint("X", BridgeFromUser, 0))
		do("the user forgets it", func(tx *Tx) error { return tx.DeleteBridge("X") })
	}
}

// TestBridgesMigrate: those that were known before several could tell of one stay.
func TestBridgesMigrate(t *testing.T) {
	before := fstest.MapFS{}
	for _, name := range []string{"schema/0001.sql", "schema/0002.sql", "schema/0003.sql"} {
		sql, err := fs.ReadFile(migrations, name)
		if err != nil {
			t.Fatal(err)
		}
		before[name] = &fstest.MapFile{Data: sql}
	}
	dir, e := t.TempDir(), testEngine()
	e.schema = before
	s := openTest(t, dir, e)
	if err := s.Update(context.Background(), func(tx *Tx) error {
		id, err := tx.CreateContact(ContactRow{Handle: "alice"})
		if err != nil {
			return err
		}
		_, err = tx.exec(`INSERT INTO bridges (address, source, contact, shared, added) VALUES ('X', 1, NULL, 1, 1), ('Y', 3, ?, 0, 2)`, id)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	e.schema = migrations
	if got := told(t, openTest(t, dir, e)); !slices.Equal(got, []string{"X1 0", "Y3 1"}) {
		t.Errorf("known are %q", got)
	}
}
