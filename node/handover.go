package node

// How a conversation that began over a relay comes to a direct connection
// (docs/spec/roads.md, sections 5 and 6):
//
//  1. Once both sides have proved who they are, the side that was dialled through
//     the relay has its host go through the NATs between the two.
//  2. The host tells of every connection. The side that opened the conversation
//     opens another on one without a relay.
//  3. Both sides' couriers see that it is better, let what is on its way on the
//     old one land, close it, and go on.

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol/stream"
)

// improve has the host know how the device at the other end may be met, and
// looks for a better road than a relay if that is allowed. It is called when a
// conversation begins and when what is known of the device has changed.
func (c *courier) improve(ctx context.Context, conv *conversation) error {
	m, err := c.meeting(ctx)
	if err != nil {
		return err
	}
	if m.way == transport.Relayed && !conv.road.relayed() && !m.hidden {
		m.way = transport.Dialled // a stranger who is here, on a local network
	}
	c.prove(conv.stream.Conn().RemoteMultiaddr())
	c.meet(conv.remote(), m.way)
	switch outbound := conv.stream.Conn().Stat().Direction == network.DirOutbound; {
	case m.hidden && !conv.road.relayed() && outbound:
		// We dialled it before the user hid; who dials us knows where we are.
		_ = conv.stream.Conn().Close() // the other side sees it end either way
		return errEnded
	case m.way != transport.Trusted || !conv.road.relayed():
	case c.n.cfg.Host.Direct(conv.remote()):
		poke(c.direct)
	case !outbound && conv.punched.CompareAndSwap(false, true):
		// It ends with the conversation, or within seconds, and nobody waits for it.
		go c.n.punch(conv)
	}
	return nil
}

// punchAgain is when a way through NATs that was not found is looked for again:
// the other side may not have been ready, or was in the middle of a move.
var punchAgain = [...]time.Duration{time.Second, 10 * time.Second, time.Minute}

// punch looks for a way through the NATs between us and the other end of a
// conversation, for as long as it goes over a relay.
func (n *Node) punch(conv *conversation) {
	for _, pause := range punchAgain {
		if n.cfg.Host.Punch(conv.remote()) == nil {
			return
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-conv.ended:
			timer.Stop()
			return
		}
	}
}

// cross opens a conversation beside one over a relay, on a direct connection
// that has appeared. It is tried as often as a hole is punched.
func (c *courier) cross(ctx context.Context, old *conversation) {
	for _, pause := range punchAgain {
		if c.crossed(ctx, old) {
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-old.ended:
			timer.Stop()
			return
		}
	}
}

func (c *courier) crossed(ctx context.Context, old *conversation) bool {
	_, keys, err := c.secrets(ctx)
	if err != nil {
		return false
	}
	dialling, cancel := context.WithTimeout(network.WithNoDial(ctx, "hand over"), reachTime)
	defer cancel()
	conv, err := c.open(dialling, keys, old.remote())
	if err != nil {
		return false // the relay goes on
	}
	if !c.n.lobby.host(ctx, conv) {
		conv.close(stream.ReasonShutdown)
		return true
	}
	select {
	case c.calls <- conv:
	default:
		conv.close(stream.ReasonSuperseded)
	}
	return true
}

// land waits until what was offered on a conversation is acknowledged, but not
// for long: what is not is offered again on the next one.
func (c *courier) land(ctx context.Context, conv *conversation, hear func(count uint64) bool) {
	timer := time.NewTimer(handOverTime)
	defer timer.Stop()
	for c.aloft() {
		select {
		case count := <-conv.acked:
			if !hear(count) {
				return
			}
		case <-conv.ended:
			return
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// aloft says whether something was offered and not acknowledged.
func (c *courier) aloft() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.flight {
		if !f.acked {
			return true
		}
	}
	return false
}

// part has the host forget how the device is met.
func (c *courier) part() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range c.peers {
		c.n.cfg.Host.Open(id, transport.Dialled)
	}
	c.peers = nil
}

// connected tells the courier whose conversation may go over a relay that there
// is a direct connection.
func (o *outbox) connected(_ network.Network, conn network.Conn) {
	if transport.IsRelayed(conn) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.couriers {
		c.mu.Lock()
		if slices.Contains(c.peers, conn.RemotePeer()) {
			poke(c.direct)
		}
		c.mu.Unlock()
	}
}
