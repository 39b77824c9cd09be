package node_test

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// TestBridgeRemoved: a bridge that the user removed is not dialled any more, one
// that stays is.
func TestBridgeRemoved(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		const way = "/dns4/cats.example/tcp/443/tls/http-path/AAECAwQFBgcICQoLDA0ODw/p2p/"
		ids := []string{"12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN", "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"}
		known := func(id string) int {
			t.Helper()
			p, err := peer.Decode(id)
			if err != nil {
				t.Fatal(err)
			}
			return len(alice.Contacts.Peerstore().Addrs(p))
		}
		for _, id := range ids {
			if _, err := alice.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: way + id}); err != nil {
				t.Fatal(err)
			}
		}
		if known(ids[0]) != 1 || known(ids[1]) != 1 {
			t.Fatal("a bridge that was added can not be dialled")
		}
		if _, err := alice.RemoveBridge(ctx, &apiv1.RemoveBridgeRequest{Id: ids[0]}); err != nil {
			t.Fatal(err)
		}
		if known(ids[0]) != 0 {
			t.Error("the bridge that was removed is still dialled")
		}
		if known(ids[1]) != 1 {
			t.Error("the other one is not dialled any more")
		}
	})
}
