package node

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	libp2pcrypto "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/mailbox"
)

// Boxes that are given up take no place in what contacts are told, and a box
// that contacts are not told of is not one that works.
func TestSetBesideLeavingBoxes(t *testing.T) {
	st, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	n := &Node{store: st, now: time.Now}
	n.beacon = newBeacon(n)
	err = n.update(t.Context(), func(w *work) error {
		for i := range 13 {
			_, pub, err := libp2pcrypto.GenerateEd25519Key(rand.Reader)
			if err != nil {
				return err
			}
			id, err := peer.IDFromPublicKey(pub)
			if err != nil {
				return err
			}
			b := store.BoxRow{
				Node: []byte(id), Address: fmt.Sprintf("/ip4/10.0.0.%d/udp/4040/quic-v1/p2p/%s", i+1, id),
				Key: make([]byte, len(mailbox.BoxKey{})), State: store.BoxLeaving, Chosen: true,
			}
			if i < 3 {
				b.State, b.Chosen = store.BoxActive, false
			}
			if err := w.tx.SaveBox(b); err != nil {
				return err
			}
		}
		for _, want := range []int{0, 3} {
			if healthy, all, err := healthyBoxes(w.tx, w.age, standingNow); err != nil || healthy != want || all != want {
				t.Errorf("%d of %d boxes work, want %d: %v", healthy, all, want, err)
			}
			if err := w.publishBoxes(); err != nil {
				return err
			}
		}
		told, err := mailSet(w.tx)
		if err != nil {
			return err
		}
		set, err := mailbox.ParseSet(told)
		if err == nil && len(set.Nodes) != 3 {
			t.Errorf("contacts are told of %d boxes, want 3", len(set.Nodes))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
