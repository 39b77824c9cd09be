package node_test

import (
	"bufio"
	"bytes"
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
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

// neverMissed checks that u was never shown a gap, not even for a moment. A
// message sealed with a key that another envelope used, a sign of two plaintexts
// under one key, does not open and shows as one.
func neverMissed(t *testing.T, u *nodetest.User) {
	t.Helper()
	for _, e := range u.Events(0) {
		if e.Type == "message" && e.Missing != 0 {
			t.Fatalf("%s missed %d messages before number %d", u.Name, e.Missing, e.Seq)
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
