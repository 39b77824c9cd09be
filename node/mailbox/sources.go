package mailbox

import (
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/protocol/mailbox"
)

// sources bounds what one peer id, all of one prefix of addresses, and all of the
// network that it lies in may ask for: a name costs nothing, an address does.
// Loopback is no exception: behind a proxy everybody comes from there.
type sources struct {
	rate func() int64 // bytes a second of one peer

	mu       sync.Mutex
	peers    map[peer.ID]*source
	prefixes map[netip.Prefix]*source
	streams  int
	held     int64 // bytes of requests and answers in memory
}

// source is one peer, one prefix or one network.
type source struct {
	streams int
	held    int64
	debt    float64   // bytes asked for beyond the rate, as of last
	last    time.Time // with its monotonic reading
}

func newSources(rate func() int64) sources {
	return sources{rate: rate, peers: make(map[peer.ID]*source), prefixes: make(map[netip.Prefix]*source)}
}

// prefixOf is where a connection comes from, near by and wide: an IPv4 /24 in its
// /16, or an IPv6 /48 in its /32. What has no address is one place.
func prefixOf(c network.Conn) (near, wide netip.Prefix) {
	ip, err := manet.ToIP(c.RemoteMultiaddr())
	if err != nil {
		return near, wide
	}
	a, _ := netip.AddrFromSlice(ip)
	a = a.Unmap()
	bits := []int{24, 16}
	if a.Is6() {
		bits = []int{48, 32}
	}
	near, _ = a.Prefix(bits[0])
	wide, _ = a.Prefix(bits[1])
	return near, wide
}

// visitor is a stream's place among the sources.
type visitor struct {
	all  *sources
	near netip.Prefix
	wide netip.Prefix

	peer   *source
	prefix *source // all of near
	net    *source // all of wide
}

// enter counts a stream, or returns nil if there are too many.
func (s *sources) enter(c network.Conn) *visitor {
	id := c.RemotePeer()
	near, wide := prefixOf(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.peers) >= maxSources || len(s.prefixes) >= maxSources {
		s.drop()
	}
	v := &visitor{all: s, near: near, wide: wide, peer: s.peers[id], prefix: s.prefixes[near], net: s.prefixes[wide]}
	full := func(x *source, most int) bool { return x != nil && x.streams >= most }
	if s.streams >= maxStreams || full(v.peer, maxPeerStreams) || full(v.prefix, maxPrefixStreams) || full(v.net, maxNetStreams) ||
		v.peer == nil && len(s.peers) >= maxSources || v.prefix == nil && len(s.prefixes) >= maxSources {
		return nil
	}
	if v.peer == nil {
		v.peer = &source{last: time.Now()}
		s.peers[id] = v.peer
	}
	for x, p := range map[**source]netip.Prefix{&v.prefix: near, &v.net: wide} {
		if *x = s.prefixes[p]; *x == nil {
			*x = &source{last: time.Now()}
			s.prefixes[p] = *x
		}
	}
	s.streams++
	for _, x := range v.scopes() {
		x.streams++
	}
	return v
}

// scopes are the peer, the prefix and the network; without an address the last
// two are one.
func (v *visitor) scopes() []*source {
	if v.prefix == v.net {
		return []*source{v.peer, v.prefix}
	}
	return []*source{v.peer, v.prefix, v.net}
}

// place is where boxes that are opened here are counted: an IPv4 /24, and an
// IPv6 /32, because who has that has as many /48 as they like.
func (v *visitor) place() netip.Prefix {
	if v.near.Addr().Is6() {
		return v.wide
	}
	return v.near
}

func (v *visitor) leave() {
	v.all.mu.Lock()
	defer v.all.mu.Unlock()
	v.all.streams--
	for _, x := range v.scopes() {
		x.streams--
	}
}

// spend takes n bytes of what a stream's peer, prefix and network may ask for,
// or says how long to wait until there is something to take again.
func (v *visitor) spend(n int64) (wait time.Duration) {
	v.all.mu.Lock()
	defer v.all.mu.Unlock()
	now, rate := time.Now(), float64(v.all.rate())
	for i, x := range v.scopes() {
		r := rate * []float64{1, prefixRate, netRate}[i]
		x.debt = max(0, x.debt-r*now.Sub(x.last).Seconds())
		x.last = now
		if x.debt >= r*burst {
			wait = max(wait, time.Second)
		}
	}
	if wait > 0 {
		// As long as an eighth of a burst takes: not one request for every wait.
		return min(burst/8*time.Second, mailbox.MaxWait)
	}
	for _, x := range v.scopes() {
		x.debt += float64(n)
	}
	return 0
}

// hold counts n bytes in memory, or says that there are too many of the prefix
// or of the network.
func (v *visitor) hold(n int64) bool {
	v.all.mu.Lock()
	defer v.all.mu.Unlock()
	free := maxHeld - v.all.held
	if v.net.held+n > free || v.prefix.held+n > free/2 {
		if v.peer.held > 0 || n > floorHeld {
			return false
		}
	}
	v.all.held += n
	for _, x := range v.scopes() {
		x.held += n
	}
	return true
}

func (v *visitor) release(n int64) {
	v.all.mu.Lock()
	defer v.all.mu.Unlock()
	v.all.held -= n
	for _, x := range v.scopes() {
		x.held -= n
	}
}

// forget drops sources that are as good as new.
func (s *sources) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop()
}

func (s *sources) drop() {
	quiet := func(x *source) bool {
		return x.streams == 0 && time.Since(x.last) > burst*time.Second
	}
	for id, x := range s.peers {
		if quiet(x) {
			delete(s.peers, id)
		}
	}
	for p, x := range s.prefixes {
		if quiet(x) {
			delete(s.prefixes, p)
		}
	}
}
