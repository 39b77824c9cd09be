package node

import (
	"context"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/invite"
	"github.com/kith-im/kith/protocol/lan"
	"github.com/kith-im/kith/protocol/rendezvous"
	"github.com/kith-im/kith/protocol/stream"
)

// lobby is where conversations begin. A stream gets in by its name, which only
// a contact, or the holder of one of our invites, can compute for the day
// (docs/spec/stream.md, section 2); everybody else hears what any libp2p host
// says to a protocol it does not know.
type lobby struct {
	n     *Node
	going sync.WaitGroup

	loading baton // held while names is made anew

	mu     sync.Mutex
	shut   bool
	stale  bool
	day    int64
	names  map[string]visitor
	guests int // streams whose device is not known yet
}

// visitor is who a stream's name stands for.
type visitor struct {
	key    protocol.StreamKey
	device identity.DeviceHash // zero: whoever answers one of our invites
	// record, if it is set, is the secret under which our record is asked for,
	// by one who has seen us on the local network.
	record protocol.RendezvousSecret
}

// maxGuests bounds the streams of people who answer invites and have not
// introduced themselves: each holds a window of envelopes.
const maxGuests = 32

func newLobby(n *Node) *lobby { return &lobby{n: n, stale: true, shut: true, loading: newBaton()} }

// open begins to take streams.
func (l *lobby) open(ctx context.Context) {
	l.mu.Lock()
	l.shut = false
	l.mu.Unlock()
	l.n.cfg.Host.HandleSecret(
		func(name libp2p.ID) bool { _, ok := l.lookup(ctx, name); return ok },
		func(s network.Stream) { l.accept(ctx, s) })
}

// close takes no more streams.
func (l *lobby) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
}

// wait returns when every conversation has ended.
func (l *lobby) wait() { l.going.Wait() }

// refresh makes the lobby look up again who may come in.
func (l *lobby) refresh() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stale = true
}

// lookup says who may come in by a name: those of yesterday, today and
// tomorrow count, because clocks differ.
func (l *lobby) lookup(ctx context.Context, name libp2p.ID) (visitor, bool) {
	today := rendezvous.Day(l.n.now())
	if l.outdated(today) {
		l.loading.Lock()
		if l.outdated(today) {
			l.reload(ctx, today)
		}
		l.loading.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.names[string(name)]
	return v, ok && !l.shut && (v.record.IsZero() || l.n.locals.isOn())
}

func (l *lobby) outdated(today int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.shut && (l.stale || l.day != today)
}

// reload makes the names anew. What changes meanwhile makes them stale again.
func (l *lobby) reload(ctx context.Context, today int64) {
	l.mu.Lock()
	l.stale = false
	l.mu.Unlock()
	names, err := l.load(ctx, today)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.stale = true
		return
	}
	l.names, l.day = names, today
}

func (l *lobby) load(ctx context.Context, today int64) (map[string]visitor, error) {
	names := make(map[string]visitor)
	add := func(v visitor) {
		for day := today - 1; day <= today+1; day++ {
			names[stream.Name(v.key, day)] = v
		}
	}
	err := l.n.view(ctx, func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		blocked := make(map[int64]bool)
		for _, c := range contacts {
			blocked[c.ID] = c.Blocked
		}
		devices, err := tx.Devices(0)
		if err != nil {
			return err
		}
		for _, d := range devices {
			if blocked[d.Contact] {
				continue
			}
			pairs, err := tx.Pairs(d.Hash)
			if err != nil {
				return err
			}
			for _, p := range pairs {
				keys := protocol.SharedFromPair(protocol.PairSecret(p))
				add(visitor{key: keys.Stream, device: identity.DeviceHash(d.Hash)})
			}
		}
		invites, err := tx.Invites()
		if err != nil {
			return err
		}
		for _, i := range invites {
			// A used invite stays open to those who hold it: a second answer is
			// what its maker must hear of.
			if i.State == store.InviteRevoked || !answerable(i, l.n.now()) {
				continue
			}
			link, err := invite.Parse(string(i.Link))
			if err != nil {
				return err
			}
			add(visitor{key: link.Keys().Stream})
			for day := today - 1; day <= today+1; day++ {
				names[lan.RecordName(link.Keys().Stream, day)] = visitor{record: link.Keys().Rendezvous}
			}
		}
		return nil
	})
	return names, err
}

// accept takes a stream that somebody opened to us.
func (l *lobby) accept(ctx context.Context, s network.Stream) {
	v, ok := l.lookup(ctx, s.Protocol())
	if !ok {
		_ = s.Reset()
		return
	}
	if !v.record.IsZero() {
		l.n.handRecord(ctx, s, v.record)
		return
	}
	c := newConversation(s, v.key, v.device, false, l.n.roadOf(s.Conn()))
	if !l.enter(c) {
		c.reset()
		return
	}
	defer l.leave(c)
	if err := c.answer(ctx, l.n.self.rand); err != nil {
		c.reset()
		return
	}
	if v.device != (identity.DeviceHash{}) {
		l.n.outbox.attach(v.device, c)
	}
	l.hold(ctx, c)
}

// enter counts a conversation in, leave counts it out, and named says that a
// guest's name is known.
func (l *lobby) enter(c *conversation) bool {
	known := c.known()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut || !known && l.guests >= maxGuests {
		return false
	}
	if c.guest = !known; c.guest {
		l.guests++
	}
	l.going.Add(1)
	return true
}

func (l *lobby) leave(c *conversation) {
	l.named(c)
	l.going.Done()
}

func (l *lobby) named(c *conversation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.guest {
		c.guest = false
		l.guests--
	}
}

// host runs a conversation that we opened, until it ends.
func (l *lobby) host(ctx context.Context, c *conversation) bool {
	if !l.enter(c) {
		return false
	}
	go func() {
		defer l.leave(c)
		l.hold(ctx, c)
	}()
	return true
}

// hold reads a conversation and receives what arrives on it, until it ends.
func (l *lobby) hold(ctx context.Context, c *conversation) {
	stop := context.AfterFunc(ctx, c.cut)
	defer stop()
	var reading sync.WaitGroup
	reading.Go(c.read)
	l.listen(ctx, c)
	reading.Wait()
}

// roadOf names the road that a connection takes. Not every local network has
// private addresses.
func (n *Node) roadOf(c network.Conn) road {
	if transport.IsRelayed(c) {
		if n.cfg.Host.Veiled(c) {
			return roadBridge
		}
		return roadRelay
	}
	a := c.RemoteMultiaddr()
	if manet.IsPrivateAddr(a) && !manet.IsIPLoopback(a) || n.locals.contain(a) {
		return roadLAN
	}
	return roadDirect
}

// transportAddress is a connection's remote address without the peer's name, or
// the relay's, if it is one.
func transportAddress(c network.Conn) string {
	if relay, ok := transport.RelayOf(c.RemoteMultiaddr()); ok {
		if info, err := peer.AddrInfoFromP2pAddr(relay); err == nil {
			return transport.Circuit(*info)[0].String()
		}
		return ""
	}
	a, _ := ma.SplitFunc(c.RemoteMultiaddr(), func(p ma.Component) bool { return p.Protocol().Code == ma.P_P2P })
	return a.String()
}
