package node_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/stream"
)

// framed returns a tap that hands every frame a stream carries to f, which
// returns the frames that travel in its place. What is not frames, a greeting for
// example, goes by.
func framed(f func(from, to netip.Addr, fr stream.Frame) []stream.Frame) nodetest.Tap {
	return func(from, to netip.Addr) func([]byte) []byte {
		var pending []byte // the beginning of an envelope's frame
		return func(b []byte) (out []byte) {
			pending = append(pending, b...)
			for len(pending) > 0 {
				r := bytes.NewReader(pending)
				in := bufio.NewReaderSize(r, 16)
				fr, err := stream.ReadFrame(in)
				switch {
				case err == nil:
					pending = pending[len(pending)-r.Len()-in.Buffered():]
					for _, fr := range f(from, to, fr) {
						out = stream.AppendFrame(out, fr)
					}
				case errors.Is(err, io.ErrUnexpectedEOF) && beginsEnvelope(pending):
					return out
				default:
					out, pending = append(out, pending...), nil
				}
			}
			return out
		}
	}
}

// beginsEnvelope says whether b is the beginning of a frame with an envelope.
func beginsEnvelope(b []byte) bool {
	size, n := binary.Uvarint(b)
	return n > 0 && len(b) > n && b[n] == byte(stream.TypeEnvelope) && bucket(int(size)-1)
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
	w.Tap(framed(func(from, to netip.Addr, f stream.Frame) []stream.Frame {
		if f.Type == stream.TypeEnvelope {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.all = append(r.all, sighting{from, to, bytes.Clone(f.Envelope)})
		}
		return []stream.Frame{f}
	}))
	return r
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
