package transport

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
)

// Road says which ways of meeting a peer are open to this host.
type Road uint8

const (
	// Dialled peers are dialled wherever their addresses allow, and may be
	// relayed; they are not helped through our NAT. It is the zero value, for
	// community nodes and for peers of whom nothing was said.
	Dialled Road = iota
	// Relayed peers are met through relays alone (threats F11): they are not to
	// learn our address from us.
	Relayed
	// Trusted peers are accepted contacts: what Dialled allows, and a way through
	// the NATs between us, for which they learn our addresses.
	Trusted
)

// roads is what was said of peers. It is safe for concurrent use.
type roads struct {
	mu sync.Mutex
	of map[peer.ID]opened
}

// opened is what was said of one peer.
type opened struct {
	road   Road
	proven []netip.Addr
}

func newRoads() *roads { return &roads{of: make(map[peer.ID]opened)} }

func (r *roads) get(p peer.ID) Road {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of[p].road
}

func (r *roads) proven(p peer.ID, at netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.of[p].proven, at)
}

func (r *roads) set(p peer.ID, to Road, proven []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if to == Dialled {
		delete(r.of, p)
		return
	}
	r.of[p] = opened{to, slices.Clone(proven)}
}

// Open says which ways of meeting a peer are open from now on, and at which IP
// addresses it, or the relay before it, was met before, maybe under another name:
// elsewhere a peer that is not Dialled is not called more than maxUnproven times a
// minute. The host remembers it until Dialled is said of the peer. Connections that
// exist stay.
func (h *Host) Open(p peer.ID, to Road, proven ...netip.Addr) { h.roads.set(p, to, proven) }

// Drop closes all connections, and forgets which addresses did not answer: this
// machine is in another network than before.
func (h *Host) Drop() {
	for _, c := range h.Network().Conns() {
		_ = c.Close() // the other side sees it end either way
	}
	if sw, ok := h.Network().(*swarm.Swarm); ok {
		for _, p := range h.Peerstore().PeersWithAddrs() {
			sw.Backoff().Clear(p)
		}
	}
}
