package transport

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/transport"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// maxPunched bounds the addresses that a peer is told for going through the
	// NATs between us, and those of its that are dialled: what was observed of
	// QUIC and TCP, and a few of the LAN for two behind one NAT.
	maxPunched = 6
	// probeMemory is the budget of the host that dials back to those who ask
	// whether they can be reached; the library asks for one dial a second at most.
	probeMemory = MinMemory
)

// through is what a host has for the NATs in its way. The zero value has nothing.
type through struct {
	ports   basichost.NATManager // nil: routers aren't asked
	autonat *autonatv2.AutoNAT   // nil: reachability isn't asked for
	punch   *holepunch.Service   // nil: holes aren't punched
	heard   event.Subscription   // of what others see of us
	done    sync.WaitGroup

	mu   sync.Mutex
	seen map[network.Conn]ma.Multiaddr // our address as a community node sees it
}

// mapper makes what asks routers for ports, or nil.
func (t *through) mapper(cfg Config) func(network.Network) basichost.NATManager {
	if !cfg.PortMapping || cfg.Mode != Open {
		return nil
	}
	return func(n network.Network) basichost.NATManager {
		t.ports = basichost.NewNATManager(n)
		return t.ports
	}
}

// openRoads starts what the host's role has beside its transports. What it
// started before an error ends with the host.
func (h *Host) openRoads(cfg Config, l limits, up transport.Upgrader) (err error) {
	switch {
	case cfg.Relay:
		if err := h.serveRelay(l); err != nil {
			return err
		}
		return h.serveProbes(cfg)
	case cfg.Role != Contacts:
		return nil
	}
	if err := h.useRelays(up); err != nil {
		return err
	}
	if len(cfg.Listen) == 0 {
		return nil // nobody is to reach us without a relay
	}
	t := &h.through
	t.seen = make(map[network.Conn]ma.Multiaddr)
	if t.heard, err = h.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted), eventbus.Name("kith")); err != nil {
		return fmt.Errorf("observed addresses: %w", err)
	}
	t.done.Go(func() {
		for e := range t.heard.Out() {
			h.observe(e.(event.EvtPeerIdentificationCompleted))
		}
	})
	asking := onlyAsks{h.BasicHost}
	if t.autonat, err = autonatv2.New(asking); err != nil {
		return fmt.Errorf("reachability: %w", err)
	}
	if err := t.autonat.Start(asking); err != nil {
		return fmt.Errorf("reachability: %w", err)
	}
	// The service wants addresses to begin with; what peers are told of them is
	// decided for each by offers.
	t.punch, err = holepunch.NewService(onDemand{h.BasicHost, h.roads}, h.IDService(), h.punched,
		holepunch.DirectDialTimeout(punchTime), holepunch.WithAddrFilter(offers{h.roads, h.mode}))
	if err != nil {
		return fmt.Errorf("hole punching: %w", err)
	}
	return nil
}

// closeRoads ends what openRoads started.
func (h *Host) closeRoads() {
	t := &h.through
	if t.punch != nil {
		_ = t.punch.Close() // it has nothing to lose
	}
	if t.autonat != nil {
		t.autonat.Close()
	}
	if h.relay != nil {
		_ = h.relay.Close() // as above
	}
	if t.heard != nil {
		_ = t.heard.Close() // as above
	}
	t.done.Wait()
}

// serveProbes tells peers that ask whether they can be reached from elsewhere,
// by dialling them back from another host.
func (h *Host) serveProbes(cfg Config) error {
	key, err := NewKey(rand.Reader)
	if err != nil {
		return err
	}
	prober, err := New(Config{
		Key: key, Role: Errands, Memory: probeMemory, Dial: cfg.Dial & Public, Transports: cfg.Transports, Log: cfg.Log,
	})
	if err != nil {
		return fmt.Errorf("reachability: %w", err)
	}
	if h.through.autonat, err = autonatv2.New(prober); err != nil {
		_ = prober.Close()
		return fmt.Errorf("reachability: %w", err)
	}
	return h.through.autonat.Start(h.BasicHost)
}

// onlyAsks is a host that asks others whether it can be reached, and doesn't
// answer such questions itself.
type onlyAsks struct{ *basichost.BasicHost }

var _ host.Host = onlyAsks{}

func (o onlyAsks) SetStreamHandler(id libp2p.ID, handle network.StreamHandler) {
	if id != autonatv2.DialProtocol {
		o.BasicHost.SetStreamHandler(id, handle)
	}
}

func (o onlyAsks) Close() error { return nil } // its owner closes the host

// onDemand is a host whose hole punching waits to be told: libp2p would begin
// with every stranger whose connection a relay brings.
type onDemand struct {
	*basichost.BasicHost
	roads *roads
}

var _ host.Host = onDemand{}

func (o onDemand) Network() network.Network { return unnoticed{o.BasicHost.Network()} }

func (o onDemand) SetStreamHandler(id libp2p.ID, handle network.StreamHandler) {
	o.BasicHost.SetStreamHandler(id, func(s network.Stream) {
		if o.roads.get(s.Conn().RemotePeer()) != Trusted {
			_ = s.Reset()
			return
		}
		handle(s)
	})
}

// unnoticed is a network that doesn't tell of its connections.
type unnoticed struct{ network.Network }

func (unnoticed) Notify(network.Notifiee)     {}
func (unnoticed) StopNotify(network.Notifiee) {}

// observe keeps what a peer that we dialled sees of us. Who came through a relay
// sees the relay.
func (h *Host) observe(e event.EvtPeerIdentificationCompleted) {
	if e.ObservedAddr == nil || e.Conn.Stat().Direction != network.DirOutbound || IsRelayed(e.Conn) ||
		ReachOf(e.ObservedAddr) != Public || OverVeil(e.Conn) {
		return
	}
	t := &h.through
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.seen {
		if c.IsClosed() {
			delete(t.seen, c)
		}
	}
	t.seen[e.Conn] = e.ObservedAddr
}

// Observed returns our addresses as the community nodes we are connected to see
// them. One that lies sends at most our accepted contacts astray.
func (h *Host) Observed() (out []ma.Multiaddr) {
	t := &h.through
	t.mu.Lock()
	defer t.mu.Unlock()
	for c, a := range t.seen {
		if !c.IsClosed() && !slices.ContainsFunc(out, a.Equal) {
			out = append(out, a)
		}
	}
	return out
}

// NAT is what the routers between us and the open internet do to our address.
type NAT uint8

// The kinds of NAT, as far as those we are connected to can tell them.
const (
	NATUnknown NAT = iota
	NATNone        // others see the address that we have
	NATSame        // one other address, whoever looks
	NATEach        // another one for each who looks
)

// NAT says which kind of NAT is before us. It asks nobody: it compares what two
// community nodes see of one socket of ours.
func (h *Host) NAT() NAT {
	own, err := h.Network().InterfaceListenAddresses()
	if err != nil {
		return NATUnknown
	}
	t := &h.through
	t.mu.Lock()
	defer t.mu.Unlock()
	return kindOf(own, t.seen)
}

func kindOf(own []ma.Multiaddr, seen map[network.Conn]ma.Multiaddr) NAT {
	same, each := false, false
	for c, a := range seen {
		if c.IsClosed() {
			continue
		}
		if slices.ContainsFunc(own, func(o ma.Multiaddr) bool { return o.Equal(a) }) {
			return NATNone
		}
		for d, b := range seen {
			if d.IsClosed() || c.RemotePeer() == d.RemotePeer() || !c.LocalMultiaddr().Equal(d.LocalMultiaddr()) {
				continue
			}
			same, each = same || a.Equal(b), each || !a.Equal(b)
		}
	}
	switch {
	case each:
		return NATEach
	case same:
		return NATSame
	}
	return NATUnknown
}

// mapped returns the addresses that routers gave us.
func (h *Host) mapped(listen []ma.Multiaddr) (out []ma.Multiaddr) {
	if h.through.ports == nil {
		return nil
	}
	for _, a := range listen {
		if m := h.through.ports.GetMapping(a); m != nil && ReachOf(m) == Public && !slices.ContainsFunc(out, m.Equal) {
			out = append(out, m)
		}
	}
	return out
}

// punched is where an accepted contact may find us while both of us dial.
func (h *Host) punched() []ma.Multiaddr {
	listen, err := h.ListenAddrs()
	if err != nil {
		return nil
	}
	out := h.Observed()
	for _, class := range []Reach{Public, Private, Loopback} {
		for _, a := range listen {
			if ReachOf(a) == class && !slices.ContainsFunc(out, a.Equal) {
				out = append(out, a)
			}
		}
	}
	return out
}

// offers decides what peers learn while a hole is punched: an accepted contact
// our addresses, everybody else nothing; and bounds the dials that theirs cause.
type offers struct {
	roads *roads
	mode  *modeState
}

var _ holepunch.AddrFilter = offers{}

func (o offers) FilterLocal(p peer.ID, addrs []ma.Multiaddr) []ma.Multiaddr {
	if o.roads.get(p) != Trusted || o.mode.get() != Open {
		return nil
	}
	return addrs[:min(len(addrs), maxPunched)]
}

func (o offers) FilterRemote(p peer.ID, addrs []ma.Multiaddr) []ma.Multiaddr {
	return o.FilterLocal(p, addrs)
}

// Punch goes through the NATs between us and a peer that came to us through a
// relay and for whom Open said Trusted. It returns when there is a direct
// connection, or when three attempts of punchTime have failed, or the host is
// closed.
func (h *Host) Punch(p peer.ID) error {
	if h.through.punch == nil || h.roads.get(p) != Trusted || h.mode.get() != Open {
		return errNoHole
	}
	return h.through.punch.DirectConnect(p)
}

var errNoHole = fmt.Errorf("no way through the NAT: %w", network.ErrNoConn)

// Reachable asks community nodes that we are connected to whether they can dial
// us, and reports whether one could. It asks nothing if we have no address of
// the open internet. That a router translates our address away is no answer:
// a node that dials us back from where we dialled it proves nothing to others.
func (h *Host) Reachable(ctx context.Context) bool {
	listen, err := h.ListenAddrs()
	if err != nil || h.through.autonat == nil || h.mode.get() != Open {
		return false
	}
	var ask []autonatv2.Request
	for _, a := range listen {
		if ReachOf(a) == Public {
			ask = append(ask, autonatv2.Request{Addr: a, SendDialData: true})
		}
	}
	if len(ask) == 0 {
		return false
	}
	result, err := h.through.autonat.GetReachability(ctx, ask)
	return err == nil && result.Reachability == network.ReachabilityPublic
}
