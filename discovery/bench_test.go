package discovery_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

// TestFigures measures in virtual time, at 20 ms one way, what benchmarks can't:
// how long a look-up and a publication take in a network of some size.
// KITH_SOAK=1 adds the larger network.
func TestFigures(t *testing.T) {
	if testing.Short() {
		t.Skip("measures")
	}
	sizes := []int{20}
	if os.Getenv("KITH_SOAK") != "" {
		sizes = append(sizes, 100)
	}
	for _, count := range sizes {
		nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
			n.SetLatency(20 * time.Millisecond)
			w := newWorld(t, n, count)
			writer := w.member(discovery.Config{})
			w.settle()
			var published, cold, warm []time.Duration
			for range 10 {
				points := person(t, time.Now())
				for _, p := range points {
					start := time.Now()
					if got, err := writer.Announce(t.Context(), p, seal(t, p, 1, start)); err != nil || got.Confirmed != 10 {
						t.Errorf("published %+v, %v", got, err)
					}
					published = append(published, time.Since(start))
				}
				reader := w.member(discovery.Config{})
				_, took := reader.find(t, points[:])
				cold = append(cold, took)
				w.settle()
				_, took = reader.find(t, points[:])
				warm = append(warm, took)
			}
			median := func(d []time.Duration) time.Duration { return slices.Sorted(slices.Values(d))[len(d)/2] }
			t.Logf("%d nodes: publish %v, find %v from nothing, %v when connected (at most 300ms of it grace)",
				count, median(published), median(cold), median(warm))
			if median(warm) > time.Second {
				t.Errorf("a look-up takes %v", median(warm))
			}
		})
	}
}

// benchNetwork is count servers on real sockets and a client that knows them.
func benchNetwork(b *testing.B, count int) *member {
	var ways []peer.AddrInfo
	for range count {
		h := loopback(b, transport.Community)
		run(b, h, discovery.Config{Host: h, Server: true, Bootstrap: ways[:min(len(ways), 3)]})
		ways = append(ways, nodetest.AddrInfo(b, h))
	}
	h := loopback(b, transport.Errands)
	client := run(b, h, discovery.Config{Host: h, Bootstrap: ways[:3]})
	points := person(b, time.Now())
	client.announce(b, points[:], 1) // joins
	return client
}

// BenchmarkAnnounce publishes one record to ten of 20 servers on loopback and reads it back.
func BenchmarkAnnounce(b *testing.B) {
	client := benchNetwork(b, 20)
	points := person(b, time.Now())
	for seq := uint64(1); b.Loop(); seq++ {
		if _, err := client.Announce(b.Context(), points[0], seal(b, points[0], seq, time.Now())); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFind looks up three points among 20 servers on loopback, which all
// answer before the grace for a newer record is over.
func BenchmarkFind(b *testing.B) {
	client := benchNetwork(b, 20)
	points := person(b, time.Now())
	client.announce(b, points[:], 1)
	for b.Loop() {
		if _, err := client.Find(b.Context(), points[:]); err != nil {
			b.Fatal(err)
		}
	}
}
