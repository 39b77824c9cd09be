package transport

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
)

// What a community node's relay gives (docs/spec/roads.md, section 2).
const (
	// relayData and relayTime bound one relayed connection, each way: a window
	// of envelopes is 1 MiB, and a conversation that says nothing ends after ten
	// minutes. libp2p's own 128 KiB and two minutes would cut both. What is cut
	// off loses nothing: it is offered again on the next connection.
	relayData = 32 << 20
	relayTime = time.Hour

	// relayBuffer is what a relayed connection holds each way beside its two
	// streams, whose windows the memory budget bounds: an envelope of the
	// smallest size with its frames.
	relayBuffer = 4 << 10

	// ReservedTime is how long a reservation lasts without being renewed. It is long
	// because its end is told by the relay's clock, which may differ from ours;
	// a reservation ends with its connection anyway.
	ReservedTime = 24 * time.Hour

	// relayedPerPeer bounds the connections relayed to and from one peer. It is
	// below streamsPerProtocol, since each is a stream.
	relayedPerPeer = 24

	// reserveTime bounds the asking for a reservation, and punchTime the dials of one
	// attempt to go through two NATs, of which there are three. It is short, because
	// the third has the other side dial: what a symmetric NAT before the one and an
	// open one before the other need. A round trip of half a second still fits.
	reserveTime = 10 * time.Second
	punchTime   = 1200 * time.Millisecond

	// relayAnswerTime is how long a relay has to answer a ping before it is taken for
	// dead: several round trips on the slowest line, lost packets included.
	relayAnswerTime = 3 * time.Second
)

// Relaying is what a relay carries, counted since its start.
type Relaying struct {
	Reservations int64 // held now
	Connections  int64 // relayed now
	Bytes        int64 // relayed
	Refused      int64 // reservations and connections that were asked for in vain
}

// relayCounts counts for the relay service.
type relayCounts struct {
	reservations, connections, bytes, refused atomic.Int64
}

var _ relay.MetricsTracer = (*relayCounts)(nil)

func (c *relayCounts) RelayStatus(bool)               {}
func (c *relayCounts) ConnectionOpened()              { c.connections.Add(1) }
func (c *relayCounts) ConnectionClosed(time.Duration) { c.connections.Add(-1) }
func (c *relayCounts) ReservationClosed(n int)        { c.reservations.Add(-int64(n)) }
func (c *relayCounts) BytesTransferred(n int)         { c.bytes.Add(int64(n)) }

func (c *relayCounts) ReservationAllowed(renewed bool) {
	if !renewed {
		c.reservations.Add(1)
	}
}

func (c *relayCounts) ConnectionRequestHandled(s pb.Status) { c.handled(s) }

func (c *relayCounts) ReservationRequestHandled(s pb.Status) { c.handled(s) }

func (c *relayCounts) handled(s pb.Status) {
	if s != pb.Status_OK {
		c.refused.Add(1)
	}
}

// serveRelay has a community node relay connections between peers that hold a
// reservation there and those who ask for them.
func (h *Host) serveRelay(l limits) error {
	reservations := l.inbound // of connections that stay
	r, err := relay.New(h.BasicHost,
		relay.WithResources(relay.Resources{
			Limit:          &relay.RelayLimit{Data: relayData, Duration: relayTime},
			ReservationTTL: ReservedTime,
			// They cost a connection each, which the resource manager bounds per
			// address and network as it does every other.
			MaxReservations:       reservations,
			MaxReservationsPerIP:  l.perIP,
			MaxReservationsPerASN: l.perSubnet,
			MaxCircuits:           relayedPerPeer,
			BufferSize:            relayBuffer,
		}),
		// Who has a reservation knows how to reach us; nothing has to be told.
		relay.WithReservationAddressFilter(func(ma.Multiaddr) bool { return false }),
		relay.WithMetricsTracer(&h.relayed),
	)
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	h.relay = r
	return nil
}

// Relaying says what this host's relay carries; it is zero without one.
func (h *Host) Relaying() Relaying {
	return Relaying{
		Reservations: h.relayed.reservations.Load(), Connections: h.relayed.connections.Load(),
		Bytes: h.relayed.bytes.Load(), Refused: h.relayed.refused.Load(),
	}
}

// useRelays lets the host dial through relays, and be dialled through those
// where it has a reservation.
func (h *Host) useRelays(up transport.Upgrader) error {
	r, err := newRoundabout(h, up)
	if err != nil {
		return fmt.Errorf("relays: %w", err)
	}
	n := h.Network().(transport.TransportNetwork) // what the swarm is
	if err := n.AddTransport(r); err != nil {
		return fmt.Errorf("relays: %w", err)
	}
	if err := n.Listen(circuit); err != nil {
		return fmt.Errorf("relays: %w", err)
	}
	r.Start()
	return nil
}

// circuit marks a relayed address; what stands before it leads to the relay.
var circuit = ma.StringCast("/p2p-circuit")

// errNotReserved means that a community node made us no reservation at its relay.
var errNotReserved = errors.New("no reservation at this relay")

// Reserve asks a community node for a reservation at its relay, or renews it, and
// says how long it lasts by the node's clock and ours. The reservation ends with the connection to the node, which is
// kept from being trimmed until Release. The error is of the network's making.
func (h *Host) Reserve(ctx context.Context, node peer.AddrInfo) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, reserveTime)
	defer cancel()
	if err := h.Connect(ctx, node); err != nil {
		return 0, fmt.Errorf("%w: %w", errNotReserved, err)
	}
	reserved, err := client.Reserve(ctx, h.BasicHost, peer.AddrInfo{ID: node.ID})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNotReserved, err)
	}
	h.ConnManager().Protect(node.ID, relayTag)
	return time.Until(reserved.Expiration), nil
}

// Release gives a reservation up, and with it the connection to its node, unless
// we are talking to somebody over it.
func (h *Host) Release(node peer.ID) {
	h.ConnManager().Unprotect(node, relayTag)
	for _, c := range h.Network().Conns() {
		if relay, ok := RelayOf(c.RemoteMultiaddr()); ok {
			if _, id := peer.SplitAddr(relay); id == node {
				return
			}
		}
	}
	_ = h.Network().ClosePeer(node) // there is nothing to be done about a connection that does not close
}

const relayTag = "relay"

// Abandon closes a connection on which nothing passes any more. If it goes through
// a relay that does not answer either, all connections to the relay are closed as
// well: they would be dialled through, one call after the other, for as long as it
// takes QUIC to notice, and libp2p tries no other relay for that peer meanwhile.
// It returns when that is done.
func (h *Host) Abandon(ctx context.Context, c network.Conn) {
	// What says goodbye there may wait for as long as the road is dead.
	go func() { _ = c.Close() }()
	through, relayed := RelayOf(c.RemoteMultiaddr())
	if !relayed {
		return
	}
	id, err := peer.IDFromP2PAddr(through)
	if err != nil {
		return
	}
	patient, cancel := context.WithTimeout(network.WithNoDial(ctx, "is it there?"), relayAnswerTime)
	defer cancel()
	<-h.ping.Ping(patient, id) // an error is an answer, or of our own limits
	if patient.Err() != nil && ctx.Err() == nil {
		_ = h.Network().ClosePeer(id)
	}
}

// Circuit returns the addresses under which a peer with a reservation at node is
// dialled, without that peer's name: node's addresses that are not secret, at
// most two, and if it has no other its name alone.
func Circuit(node peer.AddrInfo) []ma.Multiaddr {
	self, err := ma.NewComponent("p2p", node.ID.String())
	if err != nil {
		panic("transport: " + err.Error()) // a peer id is always one
	}
	through := self.Multiaddr().Encapsulate(circuit)
	var quic, tcp ma.Multiaddr
	for _, a := range node.Addrs {
		if HasPath(a) || endsInTLS(a) || ReachOf(a) == 0 {
			continue
		}
		if _, err := a.ValueForProtocol(ma.P_QUIC_V1); err == nil {
			quic = first(quic, a)
		} else {
			tcp = first(tcp, a)
		}
	}
	var out []ma.Multiaddr
	for _, a := range []ma.Multiaddr{quic, tcp} {
		if a != nil {
			out = append(out, a.Encapsulate(through))
		}
	}
	if out == nil {
		out = []ma.Multiaddr{through}
	}
	return out
}

func first(a, b ma.Multiaddr) ma.Multiaddr {
	if a != nil {
		return a
	}
	return b
}

// RelayOf returns the part of a relayed address that leads to the relay, whose
// name ends it. ok is false for every other address.
func RelayOf(a ma.Multiaddr) (relay ma.Multiaddr, ok bool) {
	relay, rest := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_CIRCUIT })
	return relay, rest != nil && relay != nil
}

// IsRelayed reports whether a connection goes through a relay.
func IsRelayed(c network.Conn) bool {
	_, ok := RelayOf(c.RemoteMultiaddr())
	return ok
}

// Veiled reports whether a relayed connection goes through a relay that is
// reached through a bridge.
func (h *Host) Veiled(c network.Conn) bool { return h.behindBridge(c.RemoteMultiaddr()) }

// behindBridge reports whether an address leads through a relay to which we are
// connected through a bridge.
func (h *Host) behindBridge(a ma.Multiaddr) bool {
	relay, ok := RelayOf(a)
	if !ok {
		return false
	}
	id, err := peer.IDFromP2PAddr(relay)
	return err == nil && anyOverVeil(h.Network().ConnsToPeer(id))
}

func anyOverVeil(conns []network.Conn) bool {
	return slices.ContainsFunc(conns, func(c network.Conn) bool { return OverVeil(c) })
}

// veiled reports whether a node is reached, or would be, through a bridge: at the
// addresses that are given, and at those that are known besides.
func (h *Host) veiled(node peer.AddrInfo) bool {
	if conns := h.Network().ConnsToPeer(node.ID); len(conns) > 0 {
		return anyOverVeil(conns)
	}
	known := h.mode.filter(slices.Concat(node.Addrs, h.Peerstore().Addrs(node.ID)))
	return len(known) > 0 && !slices.ContainsFunc(known, func(a ma.Multiaddr) bool { return !IsVeil(a) })
}

// Roundabout lets NewStream and Connect be content with a relayed connection.
func Roundabout(ctx context.Context) context.Context {
	return network.WithAllowLimitedConn(ctx, "envelopes")
}

// Direct reports whether there is a connection to a peer without a relay.
func (h *Host) Direct(p peer.ID) bool {
	for _, c := range h.Network().ConnsToPeer(p) {
		if !IsRelayed(c) {
			return true
		}
	}
	return false
}
