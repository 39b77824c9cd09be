package node

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/store"
)

// TestG05_ReceiptedMeanwhile: of a message whose receipt came while a round went on,
// nodes may well have nothing.
func TestG05_ReceiptedMeanwhile(t *testing.T) {
	st, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	n := &Node{store: st, now: time.Now, mail: &Mailboxes{changed: make(chan struct{}, 1)}}
	r := &depositRound{p: &depositor{c: &courier{n: n}}, n: 3, offers: map[int64]*offer{
		77: {id: 77, kept: true, missing: []peer.ID{"honest"}}, // no such delivery is open
	}}
	if _, err := r.finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := st.View(t.Context(), func(tx *store.Tx) error {
		k, err := tx.Keeper([]byte("honest"))
		if k.Doubts != 0 {
			t.Errorf("it has %d doubts", k.Doubts)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
