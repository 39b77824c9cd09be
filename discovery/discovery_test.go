package discovery_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/nodetest"
)

func TestAnnounceAndFind(t *testing.T) {
	for _, count := range []int{1, 3, 20} {
		nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
			n.SetLatency(20 * time.Millisecond)
			w := newWorld(t, n, count)
			alice, bob := w.member(discovery.Config{}), w.member(discovery.Config{})
			points := person(t, time.Now())
			for _, p := range alice.announce(t, points[:], 7) {
				want := min(count, 10)
				if p.Stored != want || p.Confirmed != want || p.Asked < want {
					t.Errorf("%d servers: published %+v", count, p)
				}
			}
			found, took := bob.find(t, points[:])
			if found.Seq != 7 || len(found.Body.Addresses) != 1 {
				t.Errorf("%d servers: found %+v", count, found)
			}
			t.Logf("%d servers: found after %v of virtual time", count, took)
			if status := bob.Status(); status.Mode != discovery.Client || status.Table == 0 {
				t.Errorf("status %+v", status)
			}

			// What nobody announced is not found, and that is not an error of the network.
			strangers := person(t, time.Now())
			if _, err := bob.Find(t.Context(), strangers[:]); !errors.Is(err, discovery.ErrNotFound) {
				t.Errorf("find of nothing: %v", err)
			}
		})
	}
}
