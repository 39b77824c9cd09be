package node

import (
	"bytes"
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

// However many addresses there are, a record takes those that fit beside the
// prekey bundle, the best of each kind first.
func TestAddressesThatFit(t *testing.T) {
	var w whereabouts
	for i := range 4 {
		w.direct = append(w.direct, bytes.Repeat([]byte{byte(i)}, 60))
		w.relayed = append(w.relayed, bytes.Repeat([]byte{byte(4 + i)}, 100))
	}
	for name, test := range map[string]struct {
		bundle int
		direct bool
		want   int
	}{
		"all fit":      {2000, true, 8},
		"some fit":     {3400, true, 7},
		"relays alone": {3400, false, 4},
		"fewer relays": {3700, false, 2},
		"none fits":    {3925, true, 0},
	} {
		body := w.to(audience{direct: test.direct, bundle: make([]byte, test.bundle)})
		if _, err := body.Marshal(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		t.Log(name, len(body.Addresses))
		if len(body.Addresses) != test.want {
			t.Errorf("%s: %d addresses, want %d", name, len(body.Addresses), test.want)
		}
		if test.direct && test.want > 1 && !bytes.Equal(body.Addresses[0], w.direct[0]) {
			t.Errorf("%s: the best address is not the first", name)
		}
	}
}
