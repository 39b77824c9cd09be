package discovery_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
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

// TestRefresh: a look-up fills the table again if it is older than was said, and
// else costs what it costs itself.
func TestRefresh(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		n.SetLatency(20 * time.Millisecond)
		w := newWorld(t, n, 8)
		cost := func(refresh time.Duration) (bytes int64) {
			meter := transport.NewMeter(transport.Budget{}, nil)
			h := n.Host(t, transport.Config{Role: transport.Errands, Meter: meter}, nodetest.IP(w.next))
			w.next++
			m := run(t, h, discovery.Config{Host: h, Public: true, Bootstrap: w.ways(2), Refresh: refresh})
			w.settle()
			time.Sleep(70 * time.Minute)
			before, _ := meter.Usage()
			points := person(t, time.Now())
			if _, err := m.Find(t.Context(), points[:1]); !errors.Is(err, discovery.ErrNotFound) {
				t.Errorf("find of nothing: %v", err)
			}
			w.settle()
			after, _ := meter.Usage()
			return after.Bytes() - before.Bytes()
		}
		hourly, rarely := cost(0), cost(6*time.Hour)
		t.Logf("a look-up after 70 minutes takes %d bytes with a refresh, %d without", hourly, rarely)
		if rarely > hourly*2/3 {
			t.Errorf("a look-up takes %d bytes with a table that may be older, %d else", rarely, hourly)
		}
	})
}
