package discovery

import (
	"context"
	"crypto/rand"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

// mined returns count peer ids whose places share at least so many bits with a
// target.
func mined(target hash, bits, count int) (ids []peer.ID) {
	for len(ids) < count {
		id := make([]byte, len(ed25519IDPrefix)+32)
		copy(id, ed25519IDPrefix)
		_, _ = rand.Read(id[len(ed25519IDPrefix):])
		if hashOf(id).shared(target) >= bits {
			ids = append(ids, peer.ID(id))
		}
	}
	return ids
}

// TestE02_DisjointPaths: liars, who are the nearest nodes that the walk begins
// with, name as many Sybils as the key could have holders, all nearer than every
// honest node. Their paths are lost; another finds the honest nodes at the key.
func TestE02_DisjointPaths(t *testing.T) {
	key := hash{1, 2, 3}
	honest, sybils := mined(key, 0, 60), mined(key, 14, closest)
	near := func(a, b peer.ID) int {
		x, y := hashOf(a).distance(key), hashOf(b).distance(key)
		return slices.Compare(x[:], y[:])
	}
	slices.SortFunc(honest, near)
	const seen = 3 // nodes that the walk begins with
	for liars := range seen {
		var seeds []peer.ID
		for i := range seen {
			if i < liars {
				seeds = append(seeds, sybils[i])
			} else {
				seeds = append(seeds, honest[len(honest)-1-i]) // far away
			}
		}
		w := &walk{
			target: key, seeds: seeds, enough: 7, abreast: 1,
			ask: func(_ context.Context, id peer.ID) ([]peer.ID, error) {
				if slices.Contains(sybils, id) {
					return sybils, nil
				}
				return honest[:closest], nil
			},
		}
		found := w.run(t.Context())
		for _, id := range honest[:7] {
			if !slices.Contains(found, id) {
				t.Errorf("%d of %d nodes lie: an honest node at the key is not found", liars, seen)
				break
			}
		}
		if !slices.IsSortedFunc(found, near) || len(found) > maxAsked {
			t.Errorf("%d nodes are found, or not in their order", len(found))
		}
	}
}
