package transport

import (
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// settleTime is how long a newcomer isn't the one who has to go, as long as
// there are others: enough to ask for something and be answered.
const settleTime = 2 * time.Second

// places keeps places free for whoever connects next (threats G01). The
// resource manager refuses newcomers when all places are taken, whoever took
// them, so somebody has to make room before that: as in Bitcoin Core, the
// youngest of the part of the network that has the most connections here. Who
// has been here long stays, who comes from where few do gets in, and who wants
// many places needs many networks.
type places struct {
	network.NoopNotifiee

	most    int // inbound connections that stay
	closing sync.WaitGroup

	mu    sync.Mutex
	here  map[network.Conn]place
	parts map[netip.Prefix]int
}

// place is one inbound connection's.
type place struct {
	part  netip.Prefix
	since time.Time
}

func newPlaces(most int) *places {
	return &places{most: most, here: make(map[network.Conn]place), parts: make(map[netip.Prefix]int)}
}

// partOf is the part of the network that an address lies in, an IPv4 /16 or an
// IPv6 /32: about what one operator has. What has no address is one part.
func partOf(a ma.Multiaddr) netip.Prefix {
	raw, err := manet.ToIP(a)
	if err != nil {
		return netip.Prefix{}
	}
	ip, _ := netip.AddrFromSlice(raw)
	ip = ip.Unmap()
	bits := 16
	if ip.Is6() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}

// Connected takes a newcomer in, and shows another out if that is one too many.
func (p *places) Connected(_ network.Network, c network.Conn) {
	if c.Stat().Direction != network.DirInbound {
		return
	}
	now := place{partOf(c.RemoteMultiaddr()), time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.here[c] = now
	p.parts[now.part]++
	if len(p.here) <= p.most {
		return
	}
	// Closing takes as long as the other side lets it.
	if out := p.choose(); p.drop(out) {
		p.closing.Go(func() { _ = out.CloseWithError(network.ConnGarbageCollected) })
	}
}

// Disconnected frees a place.
func (p *places) Disconnected(_ network.Network, c network.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(c)
}

func (p *places) drop(c network.Conn) bool {
	was, ok := p.here[c]
	if !ok {
		return false // dialled, or shown out before
	}
	delete(p.here, c)
	if p.parts[was.part]--; p.parts[was.part] == 0 {
		delete(p.parts, was.part)
	}
	return true
}

// choose is who has to go: of the parts with the most connections the youngest
// that has had its time, or, if nobody has, the eldest.
func (p *places) choose() (out network.Conn) {
	most := 0
	for _, n := range p.parts {
		most = max(most, n)
	}
	var since time.Time
	settled := func(t time.Time) bool { return time.Since(t) >= settleTime }
	for c, at := range p.here {
		if p.parts[at.part] != most {
			continue
		}
		switch had, has := settled(since), settled(at.since); {
		case out == nil, has && !had, has && at.since.After(since), !has && !had && at.since.Before(since):
			out, since = c, at.since
		}
	}
	return out
}
