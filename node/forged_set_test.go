package node_test

import (
	"context"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/mailbox"
)

// TestG05_ForgedSet has a contact name a good node at an address where nobody
// is: that takes nothing from what we think of the node.
func TestG05_ForgedSet(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		bob.Stop()
		good := w.ways[0].Info
		ip, err := good.Addrs[0].ValueForProtocol(ma.P_IP4)
		if err != nil {
			t.Fatal(err)
		}
		nowhere := ma.StringCast(strings.Replace(address(w.ways[0]), ip, nodetest.IP(999).String(), 1))
		set, err := (&mailbox.Set{Version: 1 << 20, Nodes: [][]byte{nowhere.Bytes()}}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := alice.Store.Update(context.Background(), func(tx *store.Tx) error {
			devices, err := tx.Devices(0)
			if err != nil {
				return err
			}
			return tx.SaveDeviceBoxes(devices[0].Hash, set)
		}); err != nil {
			t.Fatal(err)
		}
		alice.Say("bob", "are you there?")
		time.Sleep(20 * time.Minute)
		if k := keeper(alice, w.ways[0]); k.Failing != 0 {
			t.Error("the node counts as one that does not answer")
		}
	})
}
