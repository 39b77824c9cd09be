package transport

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// maxUnproven dials go to one IP address in unprovenTime, over all contacts,
	// while nothing but what contacts announce says that they are there: two calls
	// at the most that one record may name.
	maxUnproven  = 8
	unprovenTime = time.Minute
	// manyUnproven is when what no longer counts is thrown away. A host makes some
	// eighty calls a minute, of eight addresses.
	manyUnproven = 1024
)

// unproven bounds the dials at addresses that only records name: of contacts'
// devices, of relays through which those say they are reached, and of their
// mailboxes. Otherwise one contact, or several together, would aim this host at somebody (threats E10). An
// address is proven for a peer when they were met there, or when the caller of
// Open says so. It is safe for concurrent use.
type unproven struct {
	roads *roads
	sw    atomic.Pointer[swarm.Swarm] // nil while the host is made

	mu     sync.Mutex
	relays map[peer.ID]time.Time // of whom a record speaks, and until when
	met    map[spot]struct{}
	dials  map[netip.Addr][]attempt // the latest last, at most maxUnproven
}

// spot is a peer at an address.
type spot struct {
	peer peer.ID
	at   netip.Addr
}

// attempt is one dial.
type attempt struct {
	peer peer.ID
	addr string
	at   time.Time
}

func newUnproven(r *roads) *unproven {
	return &unproven{
		roads: r, relays: make(map[peer.ID]time.Time), met: make(map[spot]struct{}), dials: make(map[netip.Addr][]attempt),
	}
}

// name takes note of a relay in an address of a peer's: what is dialled is the
// relay, and not before it is its turn.
func (u *unproven) name(p peer.ID, relay ma.Multiaddr) {
	if u == nil || u.roads.get(p) == Dialled {
		return
	}
	if ip, ok := ipOf(relay); ok && u.roads.proven(p, ip) {
		return
	}
	_, id := peer.SplitAddr(relay)
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if len(u.relays) >= manyUnproven {
		for id, until := range u.relays {
			if now.After(until) {
				delete(u.relays, id)
			}
		}
	}
	u.relays[id] = now.Add(unprovenTime)
}

// mayDial reports whether a peer may be dialled at an address now, and counts the
// dial if it matters.
func (u *unproven) mayDial(p peer.ID, a ma.Multiaddr) bool {
	if u == nil {
		return true
	}
	ip, ok := ipOf(a)
	if !ok {
		return true // no record's address has a name
	}
	sw := u.sw.Load()
	if u.roads.proven(p, ip) || sw != nil && sw.Backoff().Backoff(p, a) { // then it is not dialled whatever we say
		return true
	}
	// Hole punching passes over the backoff: its dials are bounded by offers, each
	// time, and not here.
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	_, met := u.met[spot{p, ip}]
	if met || u.roads.get(p) == Dialled && now.After(u.relays[p]) {
		return true
	}
	recent := u.recentLocked(ip, now)
	addr := string(a.Bytes())
	if slices.ContainsFunc(recent, func(d attempt) bool {
		return d.peer == p && d.addr == addr && now.Sub(d.at) < dialTimeout // it is on its way
	}) {
		return true
	}
	if len(recent) >= maxUnproven {
		return false
	}
	u.dials[ip] = append(recent, attempt{p, addr, now})
	return true
}

// MayCall reports whether a peer of whom only a contact has told may be dialled at an
// address now, by another host of ours, and counts the dial: whichever host makes it,
// it goes to the same machine.
func (h *Host) MayCall(p peer.ID, a ma.Multiaddr) bool {
	u := h.calls
	ip, ok := ipOf(a)
	if !ok {
		return true // not told by a contact
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, met := u.met[spot{p, ip}]; met {
		return true
	}
	now := time.Now()
	recent := u.recentLocked(ip, now)
	if len(recent) >= maxUnproven {
		return false
	}
	u.dials[ip] = append(recent, attempt{at: now}) // a host of its own makes a dial of its own
	return true
}

// Met takes note of where another host of ours has met a peer: MayCall does not count
// what goes there.
func (h *Host) Met(c network.Conn) { h.calls.connected(nil, c) }

// recentLocked returns the dials at an address that count.
func (u *unproven) recentLocked(ip netip.Addr, now time.Time) []attempt {
	if len(u.dials) >= manyUnproven {
		u.sweepLocked(now)
	}
	recent := slices.DeleteFunc(u.dials[ip], func(d attempt) bool { return now.Sub(d.at) >= unprovenTime })
	u.dials[ip] = recent
	return recent
}

func (u *unproven) sweepLocked(now time.Time) {
	for ip, dials := range u.dials {
		if len(dials) == 0 || now.Sub(dials[len(dials)-1].at) >= unprovenTime {
			delete(u.dials, ip)
		}
	}
}

// connected takes note of where a peer was met that we dialled. It has shown its
// key there.
func (u *unproven) connected(_ network.Network, c network.Conn) {
	if c.Stat().Direction != network.DirOutbound || isRelayed(c.RemoteMultiaddr()) {
		return
	}
	ip, ok := ipOf(c.RemoteMultiaddr())
	if !ok {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.met) >= manyUnproven {
		clear(u.met) // they are met again, or count
	}
	u.met[spot{c.RemotePeer(), ip}] = struct{}{}
}

// ipOf is the IP address that an address begins with.
func ipOf(a ma.Multiaddr) (netip.Addr, bool) {
	raw, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	ip, ok := netip.AddrFromSlice(raw)
	return ip.Unmap(), ok
}
