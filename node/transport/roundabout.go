package transport

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"
)

// roundabout is libp2p's transport through relays, made to try one relay beside the
// other. libp2p's own waits for a silent relay for a minute, whatever the context
// says, and meanwhile dials that peer through no other one. Here each relay has a
// client of its own, and the stream to it ends with the context.
type roundabout struct {
	*client.Client // takes calls
	host           *Host
	up             transport.Upgrader

	mu     sync.Mutex
	relays map[peer.ID]*client.Client
}

func newRoundabout(h *Host, up transport.Upgrader) (*roundabout, error) {
	c, err := client.New(h.BasicHost, up)
	return &roundabout{Client: c, host: h, up: up, relays: make(map[peer.ID]*client.Client)}, err
}

// maxRelayClients bounds the relays whose clients are kept. A client counts the
// connections through its relay, for which that is kept from being trimmed; more
// relays than this are not dialled through in a while.
const maxRelayClients = 64

// by returns what dials through a relay.
func (r *roundabout) by(relay peer.ID) (*client.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.relays[relay]; ok {
		return c, nil
	}
	c, err := client.New(hopHost{r.host.BasicHost}, r.up)
	if err != nil {
		return nil, err
	}
	if len(r.relays) == maxRelayClients {
		clear(r.relays)
	}
	r.relays[relay] = c
	return c, nil
}

// relayTrips round trips to our bridges are given to a relayed connection beside the
// swarm's time for a dial: one until the relay has asked the other end, three to
// agree on security and keys with that, and as many again because it may be as far
// from the relay. They make no more than maxRelayExtra, since the other end gives
// handshakeTimeout to its part.
const (
	relayTrips    = 8
	maxRelayExtra = 20 * time.Second
)

// Dial takes longer than the swarm's time where the way to the relay does: the
// context counts when it is cancelled, and its deadline is moved. Until there is a
// connection to the relay's bridge nothing of it counts.
func (r *roundabout) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	through, ok := RelayOf(a)
	if !ok {
		return nil, fmt.Errorf("%v leads through no relay", a)
	}
	relay, err := peer.AddrInfoFromP2pAddr(through)
	if err != nil {
		return nil, err
	}
	dialler, err := r.by(relay.ID)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok && r.host.veiled(*relay) {
		usual := time.Until(deadline)
		bridged, cancel := prolonged(ctx, time.Now().Add(veilDialTimeout))
		err := r.host.BasicHost.Connect(bridged, peer.AddrInfo{ID: relay.ID})
		cancel()
		if err != nil {
			return nil, err
		}
		ctx, cancel = prolonged(ctx, time.Now().Add(usual+min(relayTrips*r.host.veil.lag(), maxRelayExtra)))
		defer cancel()
	}
	stop := func() bool { return true }
	opened := func(s network.Stream) { stop = context.AfterFunc(ctx, func() { _ = s.Reset() }) }
	c, err := dialler.Dial(context.WithValue(ctx, openedKey{}, opened), a, p)
	if !stop() && err == nil {
		_ = c.Close() // the context ended at the last moment, and the stream under it
		return nil, ctx.Err()
	}
	return c, err
}

// openedKey is where a context has who is told of the streams that are opened for it.
type openedKey struct{}

// hopHost is a host that tells a dial through a relay of the stream to the relay,
// which libp2p keeps to itself.
type hopHost struct{ host.Host }

func (h hopHost) NewStream(ctx context.Context, p peer.ID, names ...protocol.ID) (network.Stream, error) {
	s, err := h.Host.NewStream(ctx, p, names...)
	if opened, ok := ctx.Value(openedKey{}).(func(network.Stream)); ok && err == nil {
		opened(s)
	}
	return s, err
}
