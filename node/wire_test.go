package node_test

import (
	"bufio"
	"bytes"
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/ratchet"
	"github.com/kith-im/kith/protocol/stream"
)

// frames splits what was written to a stream at once into frames; ok says that
// it was nothing else.
func frames(b []byte) (all []stream.Frame, ok bool) {
	r := bufio.NewReader(bytes.NewReader(b))
	for {
		if _, err := r.Peek(1); err != nil {
			return all, len(all) > 0
		}
		f, err := stream.ReadFrame(r)
		if err != nil {
			return nil, false
		}
		all = append(all, f)
	}
}

// sighting is an envelope that travelled.
type sighting struct {
	from, to netip.Addr
	envelope []byte
}

// recorder keeps every envelope that travels.
type recorder struct {
	mu  sync.Mutex
	all []sighting
}

// record begins to keep what travels.
func (w *world) record() *recorder {
	r := &recorder{}
	w.Tap(func(from, to netip.Addr, b []byte) []byte {
		r.see(from, to, b)
		return b
	})
	return r
}

func (r *recorder) see(from, to netip.Addr, b []byte) {
	all, _ := frames(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range all {
		if f.Type == stream.TypeEnvelope {
			r.all = append(r.all, sighting{from, to, bytes.Clone(f.Envelope)})
		}
	}
}

// of returns the envelopes from one machine to another, each once, in order.
func (r *recorder) of(from, to netip.Addr) (all [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.all {
		if s.from == from && s.to == to && !slices.ContainsFunc(all, func(e []byte) bool { return bytes.Equal(e, s.envelope) }) {
			all = append(all, s.envelope)
		}
	}
	return all
}

// eavesdropper holds the receiving half of a session as it was at one moment.
type eavesdropper struct{ session ratchet.Session }

// eavesdrop copies u's session with a contact that has talked before.
func eavesdrop(t *testing.T, u *nodetest.User, contact string) *eavesdropper {
	t.Helper()
	e := &eavesdropper{}
	for _, row := range sessions(t, u, contact) {
		const before = 1 + 1 + 3 // format, role, length
		size := int(row.State[2])<<16 | int(row.State[3])<<8 | int(row.State[4])
		s, err := ratchet.UnmarshalSession(row.State[before : before+size])
		if err != nil {
			t.Fatal(err)
		}
		e.session = s
	}
	return e
}

// sessions returns the stored sessions of u with a contact.
func sessions(t *testing.T, u *nodetest.User, contact string) (rows []store.SessionRow) {
	t.Helper()
	ds := devices(t, u, contact)
	if err := u.Store.View(context.Background(), func(tx *store.Tx) error {
		for _, d := range ds {
			more, err := tx.Sessions(d.Hash)
			if err != nil {
				return err
			}
			rows = append(rows, more...)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return rows
}

// devices returns the stored devices of a contact.
func devices(t *testing.T, u *nodetest.User, contact string) (rows []store.DeviceRow) {
	t.Helper()
	if err := u.Store.View(context.Background(), func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		for _, c := range contacts {
			if c.Name == contact || c.Handle == contact {
				if rows, err = tx.Devices(c.ID); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return rows
}

// eachKeyOnce opens envelopes, sealed after the moment of eavesdropping, one
// after another. Opening consumes the message key, so an envelope that was sealed
// with a key that another one used does not open.
func (e *eavesdropper) eachKeyOnce(t *testing.T, envelopes [][]byte) {
	t.Helper()
	if len(envelopes) == 0 {
		t.Fatal("nothing travelled")
	}
	for i, raw := range envelopes {
		_, payload, err := envelope.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if e.session, _, err = e.session.Decrypt(payload, time.Now()); err != nil {
			t.Fatalf("envelope %d of %d has no message key of its own: %v", i, len(envelopes), err)
		}
	}
}

func bucket(n int) bool {
	for size := protocol.MinEnvelope; size <= protocol.MaxEnvelope; size *= 2 {
		if n == size {
			return true
		}
	}
	return false
}
