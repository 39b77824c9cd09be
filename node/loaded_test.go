package node

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
)

// The sessions in memory go with what was saved: a closure that fails leaves
// them as they were, and a change that is undone leaves none.
func TestLoadedSessions(t *testing.T) {
	st, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	n := &Node{store: st, now: time.Now}
	id, device := handshake.SessionID{1}, identity.DeviceHash{2}
	n.loaded.sessions = map[handshake.SessionID]session{id: {id: id, device: device, sealed: 7}}
	n.loaded.live = map[identity.DeviceHash]handshake.SessionID{device: id}
	refused := errors.New("refused")
	err = n.update(t.Context(), func(w *work) error {
		s, err := w.liveSession(device)
		if err != nil {
			return err
		}
		s.sealed, s.prefix = 8, bytes.Repeat([]byte{1}, 4)
		return refused
	})
	if kept := n.loaded.sessions[id]; !errors.Is(err, refused) || kept.sealed != 7 || kept.prefix != nil {
		t.Fatalf("%v; the session counts %d, want 7", err, kept.sealed)
	}
	err = n.update(t.Context(), func(w *work) error {
		s, err := w.session(id)
		if err != nil {
			return err
		}
		s.sealed = 9 // as saved: not dirty, so the store is not asked
		return nil
	})
	if kept := n.loaded.sessions[id]; err != nil || kept.sealed != 9 {
		t.Fatalf("%v; the session counts %d, want 9", err, kept.sealed)
	}
	err = n.update(t.Context(), func(w *work) error { return w.dropSession(id, device) })
	if err != nil || len(n.loaded.sessions)+len(n.loaded.live) != 0 {
		t.Fatalf("%v; %d sessions are left in memory after theirs was dropped", err, len(n.loaded.sessions))
	}
}
