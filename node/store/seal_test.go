package store

import (
	"bytes"
	"errors"
	"testing"
)

// A sealed value opens in its own row of its own table, and nowhere else.
func TestSeal(t *testing.T) {
	s := newSealer(func() []byte { return make([]byte, dataKeySize) })
	value := []byte("a key")
	sealed, err := s.seal("sessions", []byte("row"), value)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.open("sessions", []byte("row"), sealed); err != nil || !bytes.Equal(got, value) {
		t.Fatalf("got %q and %v, want %q", got, err, value)
	}
	again, err := s.seal("sessions", []byte("row"), value)
	if err != nil || bytes.Equal(again, sealed) {
		t.Errorf("sealed alike twice (%v)", err)
	}
	for _, test := range []struct{ table, row string }{
		{"sessions", "other"}, {"devices", "row"}, {"session", "srow"}, {"sessionsr", "ow"}, {"sessions", ""},
	} {
		if _, err := s.open(test.table, []byte(test.row), sealed); !errors.Is(err, ErrDamaged) {
			t.Errorf("in %s, row %q: got %v, want ErrDamaged", test.table, test.row, err)
		}
	}
	for i := range sealed {
		altered := bytes.Clone(sealed)
		altered[i] ^= 1
		if _, err := s.open("sessions", []byte("row"), altered); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d altered: got %v, want ErrDamaged", i, err)
		}
		if _, err := s.open("sessions", []byte("row"), sealed[:i]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: got %v, want ErrDamaged", i, err)
		}
	}
	other := newSealer(func() []byte { return bytes.Repeat([]byte{1}, dataKeySize) })
	if _, err := other.open("sessions", []byte("row"), sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("another data key: got %v, want ErrDamaged", err)
	}
}
