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

// sources bounds what one peer id, and all of one prefix of addresses, may ask
// for: a name costs nothing, an address does. Loopback is no exception: behind
// a proxy everybody comes from there.
type sources struct {
	rate func() int64 // bytes a second of one peer

	mu       sync.Mutex
	peers    map[peer.ID]*source
	prefixes map[netip.Prefix]*source
	streams  int
	held     int64 // bytes of requests and answers in memory
}

// source is one peer or one prefix.
type source struct {
	streams int
	held    int64
	debt    float64   // bytes asked for beyond the rate, as of last
	last    time.Time // with its monotonic reading
}

func newSources(rate func() int64) sources {
	return sources{rate: rate, peers: make(map[peer.ID]*source), prefixes: make(map[netip.Prefix]*source)}
}

// prefixOf is where a connection comes from: an IPv4 /24 or IPv6 /48. What has
// no address is one place.
func prefixOf(c network.Conn) netip.Prefix {
	ip, err := manet.ToIP(c.RemoteMultiaddr())
	if err != nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(ip)
	a = a.Unmap()
	bits := 24
	if a.Is6() {
		bits = 48
	}
	p, _ := a.Prefix(bits)
	return p
}

// visitor is a stream's place among the sources.
type visitor struct {
	all    *sources
	id     peer.ID
	prefix netip.Prefix
	peer   *source
	near   *source // all of the prefix
}

// enter counts a stream, or returns nil if there are too many.
func (s *sources) enter(id peer.ID, prefix netip.Prefix) *visitor {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &visitor{all: s, id: id, prefix: prefix, peer: s.peers[id], near: s.prefixes[prefix]}
	if s.streams >= maxStreams || v.peer != nil && v.peer.streams >= maxPeerStreams ||
		v.near != nil && v.near.streams >= maxPrefixStreams {
		return nil
	}
	if v.peer == nil {
		v.peer = &source{last: time.Now()}
		s.peers[id] = v.peer
	}
	if v.near == nil {
		v.near = &source{last: time.Now()}
		s.prefixes[prefix] = v.near
	}
	s.streams++
	v.peer.streams++
	v.near.streams++
	return v
}

func (v *visitor) leave() {
	v.all.mu.Lock()
	defer v.all.mu.Unlock()
	v.all.streams--
	v.peer.streams--
	v.near.streams--
}

// spend takes n bytes of what a stream's peer and prefix may ask for, or says
// how long to wait until there is something to take again.
func (v *visitor) spend(n int64) (wait time.Duration) {
	v.all.mu.Lock()
	defer v.all.mu.Unlock()
	now, rate := time.Now(), float64(v.all.rate())
	for i, s := range []*source{v.peer, v.near} {
		r := rate
		if i == 1 {
			r *= prefixRate
		}
		s.debt = max(0, s.debt-r*now.Sub(s.last).Seconds())
		s.last = now
		if s.debt >= r*burst {
			wait = max(wait, time.Second)
		}
	}
	if wait > 0 {
		// As long as an eighth of a burst takes: not one request for every wait.
		return min(burst/8*time.Second, mailbox.MaxWait)
	}
	v.peer.debt += float64(n)
	v.near.debt += float64(n)
	return 0
}

// hold counts n bytes in memory, or says that there are too many of the prefix.
func (v *visitor) hold(n int64) bool {
	v.all.mu.Lock()
	defer v.all.mu.Unlock()
	if v.near.held+n > maxHeld-v.all.held {
		return false
	}
	v.all.held += n
	v.near.held += n
	return true
}

func (v *visitor) release(n int64) {
	v.all.mu.Lock()
	defer v.all.mu.Unlock()
	v.all.held -= n
	v.near.held -= n
}

// forget drops sources that are as good as new.
func (s *sources) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
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
