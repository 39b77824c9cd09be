package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/invite"
	"github.com/kith-im/kith/protocol/rendezvous"
	"github.com/kith-im/kith/protocol/stream"
)

// reachTime bounds one attempt to reach a device, look-ups included.
const reachTime = 30 * time.Second

// maxDirect and maxRelayed bound the addresses of each kind that a record of ours
// says, and that are taken of another's; of these maxPerPlace with the same IP
// address are dialled, relays included (threats E10; docs/spec/roads.md, section 3).
const (
	maxDirect   = 4
	maxRelayed  = 4
	maxPerPlace = 4
)

var (
	errNoRecord = errors.New("the contact has not announced itself")
	errNoWayIn  = errors.New("no community node answers")
	errDial     = errors.New("the contact does not answer")
)

// reach opens a conversation with a device: where it was heard on the local
// network, at the addresses where it was last reached, and at those it has
// announced, all at the same time. The first to answer wins; a call from the device ends the search. On the way it learns
// what the announcement holds: for a contact whose keys are missing, the keys.
func (c *courier) reach(ctx context.Context) (*conversation, error) {
	c.approach(ctx)
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	d, keys, err := c.secrets(ctx)
	if err != nil {
		return nil, err
	}
	m, err := c.meeting(ctx)
	if err != nil {
		return nil, err
	}
	// All ways end with a connection; only then is a stream opened, once.
	results := make(chan outcome)
	tries := 0
	try := func(to func() outcome) {
		tries++
		go func() {
			select {
			case results <- to():
			case <-ctx.Done():
			}
		}()
	}
	visit := func() {
		if near, ok := c.n.locals.where(c.device); ok {
			try(func() outcome { return c.visit(ctx, d, keys, near) })
		}
	}
	visit()
	old := decodeAddresses(d.Addresses)
	for _, a := range old.Addrs {
		c.prove(a)
	}
	if len(old.Addrs) > 0 && d.Public != nil {
		try(func() outcome { return outcome{id: old.ID, keys: keys, err: c.connect(ctx, old, m.way)} })
	}
	try(func() outcome { return c.seek(ctx, d, keys, m) })
	for tries > 0 {
		var r outcome
		select {
		case r = <-results:
			tries--
		case <-c.heard:
			visit()
			continue
		case conv := <-c.calls:
			return conv, nil
		case <-ctx.Done(): // then a way may end without a word
			return nil, ctx.Err()
		}
		if err = r.err; err != nil {
			continue
		}
		if d.Public == nil {
			// It has heard nothing of ours yet and knows the invite's name alone, the last. Later
			// that one is of no use to who has nothing to say: it does not tell who calls.
			slices.Reverse(r.keys)
		}
		var conv *conversation
		if conv, err = c.open(transport.Roundabout(ctx), r.keys, r.id); err == nil {
			c.remember(ctx, conv)
			return conv, nil
		}
	}
	return nil, err
}

// approach has the host connect to the bridges by which a device will be reached,
// while it is still being looked up: where a round trip is long, that takes as long.
func (c *courier) approach(ctx context.Context) {
	if !c.n.modes.censored() {
		return
	}
	known := c.n.modes.known()
	for _, info := range known[:min(len(known), relaysWanted)] {
		if !c.n.cfg.Host.Direct(info.ID) {
			c.o.done.Go(func() { _ = c.n.cfg.Host.Connect(ctx, info) }) // whoever needs it says what is wrong
		}
	}
}

// outcome is a way to a device: a connection, and what opens a stream on it.
type outcome struct {
	id   peer.ID
	keys []protocol.Shared
	err  error
}

// secrets returns a device and what we share with it.
func (c *courier) secrets(ctx context.Context) (d store.DeviceRow, keys []protocol.Shared, err error) {
	err = c.n.view(ctx, func(tx *store.Tx) error {
		if d, err = tx.Device(c.device[:]); err != nil {
			return err
		}
		keys, err = sharedKeys(tx, d)
		return err
	})
	return d, keys, err
}

// meeting is how a device may be met.
type meeting struct {
	way    transport.Road
	known  bool // it is an established contact's
	hidden bool // the user hides from it
}

func (c *courier) meeting(ctx context.Context) (m meeting, err error) {
	err = c.n.view(ctx, func(tx *store.Tx) error {
		d, err := tx.Device(c.device[:])
		if err != nil {
			return err
		}
		contact, err := tx.Contact(d.Contact)
		if err != nil {
			return err
		}
		direct, err := c.n.direct(contact, d)
		m = meeting{way: transport.Relayed, known: contact.State == store.ContactEstablished, hidden: c.n.hides(contact)}
		if direct {
			m.way = transport.Trusted
		}
		return err
	})
	return m, err
}

// hides says whether a contact is not to learn our address, whoever they are.
func (n *Node) hides(c store.ContactRow) bool { return n.cfg.HideAddress || c.Hidden }

// direct says whether a contact's device may know our address and be dialled at
// its own: an accepted contact from whom the user does not hide. Of those who
// have not answered yet, they are accepted whose one-time invite we hold, or who
// answered ours; a reusable invite is for anybody (docs/spec/roads.md, section 3).
func (n *Node) direct(c store.ContactRow, d store.DeviceRow) (bool, error) {
	if n.hides(c) || c.Blocked || c.State == store.ContactRequest {
		return false, nil
	}
	if c.State == store.ContactEstablished || d.Link == nil {
		return true, nil
	}
	link, err := invite.Parse(string(d.Link))
	if err != nil {
		return false, errors.Join(store.ErrDamaged, err)
	}
	return !link.Reusable, nil
}

// seek finds what the device has announced, learns from it, and connects.
func (c *courier) seek(ctx context.Context, d store.DeviceRow, keys []protocol.Shared, m meeting) outcome {
	found, at, err := c.find(ctx, keys)
	if err != nil {
		return outcome{err: err}
	}
	if keys, err = c.digest(ctx, d, keys, found, at); err != nil {
		return outcome{err: err}
	}
	info := c.n.addresses(found.Body.Addresses, m.known)
	return outcome{id: info.ID, keys: keys, err: c.connect(ctx, info, m.way)}
}

// digest learns from what the device has announced: its mailboxes, and, as long as
// it has not answered us, its keys. It returns what we then share with it.
func (c *courier) digest(ctx context.Context, d store.DeviceRow, keys []protocol.Shared, found discovery.Found, at protocol.Shared) ([]protocol.Shared, error) {
	if d.Public == nil && found.Body.Bundle == nil {
		return nil, errNoRecord // the invite has ended
	}
	if boxes := found.Body.Field(rendezvous.FieldMailboxes); boxes != nil {
		if err := c.n.update(ctx, func(w *work) error { return w.learnBoxes(c.device, boxes, d.Link != nil) }); err != nil {
			return nil, err
		}
	}
	if d.Link != nil && found.Body.Bundle != nil {
		if err := c.learn(ctx, found, at); err != nil && d.Public == nil {
			return nil, err
		}
		_, renewed, err := c.secrets(ctx)
		return renewed, err
	}
	return keys, nil
}

// find looks for the device's record under all the secrets that we share with
// it: first where it is today, and then, if nothing is there, where it will be
// tomorrow, because clocks differ.
func (c *courier) find(ctx context.Context, keys []protocol.Shared) (discovery.Found, protocol.Shared, error) {
	today := rendezvous.Day(c.n.now())
	err := errNoRecord
	for day := today; day <= today+1; day++ {
		for _, k := range keys {
			points := rendezvous.Derive(k.Rendezvous, c.device, day)
			f, findErr := c.n.cfg.Discovery.Find(ctx, points[:])
			switch {
			case findErr == nil:
				return f, k, nil
			case errors.Is(findErr, discovery.ErrNoPeers):
				return discovery.Found{}, k, errNoWayIn
			case ctx.Err() != nil:
				return discovery.Found{}, k, ctx.Err()
			case !errors.Is(findErr, discovery.ErrNotFound):
				return discovery.Found{}, k, findErr
			}
		}
	}
	return discovery.Found{}, protocol.Shared{}, err
}

// learn begins the session with a device whose invite we accepted, from the
// prekey bundle it announced; or begins it again, if the first bundle is out of
// use and was never answered.
func (c *courier) learn(ctx context.Context, f discovery.Found, at protocol.Shared) error {
	bundle, err := handshake.ParseBundle(f.Body.Bundle, c.device, at.Bundle, 0, c.n.now())
	if err != nil {
		return fmt.Errorf("the contact's keys cannot be used: %w", err)
	}
	return c.n.update(ctx, func(w *work) error { return w.learn(c.device, bundle) })
}

func (w *work) learn(device identity.DeviceHash, bundle *handshake.Bundle) error {
	d, err := w.tx.Device(device[:])
	if err != nil {
		return err
	}
	if d.Link == nil {
		return nil // answered in the meantime
	}
	link, err := invite.Parse(string(d.Link))
	if err != nil {
		return errors.Join(store.ErrDamaged, err)
	}
	contact, err := w.tx.Contact(d.Contact)
	if err != nil {
		return err
	}
	if d.Public != nil {
		if stale, err := w.stale(device, bundle); !stale {
			return err
		}
	}
	return w.begin(contact, d, link, bundle)
}

// connect makes sure that there is a connection to a peer, directly where that is
// allowed and works, or through a relay.
func (c *courier) connect(ctx context.Context, info peer.AddrInfo, way transport.Road) error {
	if way == transport.Relayed {
		info.Addrs = slices.DeleteFunc(info.Addrs, func(a ma.Multiaddr) bool {
			_, relayed := transport.RelayOf(a)
			return !relayed
		})
	}
	if len(info.Addrs) == 0 {
		return errDial
	}
	c.meet(info.ID, way)
	if err := c.n.cfg.Host.Reach(transport.Roundabout(ctx), info); err != nil {
		return errors.Join(errDial, ctx.Err())
	}
	return nil
}

// maxPeers is how many names of a device's transport are known at one time: the
// one it had when it was last reached, and the one it has announced.
const maxPeers = 2

// meet has the host know how the device, whose transport has this name now or had
// it lately, may be met.
func (c *courier) meet(id peer.ID, way transport.Road) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peers = append(slices.DeleteFunc(c.peers, func(p peer.ID) bool { return p == id }), id)
	if len(c.peers) > maxPeers {
		c.n.cfg.Host.Open(c.peers[0], transport.Dialled)
		c.peers = slices.Delete(c.peers, 0, 1)
	}
	c.n.cfg.Host.Open(id, way, c.proven...)
}

// maxProven is how many IP addresses of a device, or of relays before it, are
// taken for its own: at home, at work and on the way.
const maxProven = 4

// prove takes note of where a conversation with the device was held. Calls there
// are not held back (threats E10).
func (c *courier) prove(a ma.Multiaddr) {
	p := placeOf(a)
	if !p.IsValid() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proven = append(slices.DeleteFunc(c.proven, func(o netip.Addr) bool { return o == p }), p)
	if len(c.proven) > maxProven {
		c.proven = slices.Delete(c.proven, 0, 1)
	}
}

// open opens a conversation with a device on a connection, under the name that the
// first of our secrets gives it, or the next one where the device serves none such.
func (c *courier) open(ctx context.Context, keys []protocol.Shared, id peer.ID) (*conversation, error) {
	today := rendezvous.Day(c.n.now())
	for _, k := range keys {
		s, err := c.n.cfg.Host.Call(ctx, id, libp2p.ID(stream.Name(k.Stream, today)))
		if err != nil {
			break
		}
		conv := newConversation(s, k.Stream, c.device, true, c.n.roadOf(s.Conn()))
		if err = conv.greet(ctx, c.n.self.rand); err == nil {
			return conv, nil
		}
		conv.reset()
		switch {
		case errors.Is(err, stream.ErrHello):
			return nil, err
		case !errors.Is(err, transport.ErrNotSpoken) && !errors.Is(err, network.ErrReset): // which may be for want of room for guests
			return nil, errors.Join(errDial, ctx.Err())
		}
	}
	return nil, errors.Join(errDial, ctx.Err())
}

// reachable says whether an address that somebody published may be dialled.
func (n *Node) reachable(a ma.Multiaddr, known bool) bool {
	return n.cfg.Reachable == nil || n.cfg.Reachable(a, known)
}

// addresses reads the addresses of a record, which an established contact wrote
// if known is true: all of one peer, few, and none that we may not dial
// (docs/spec/roads.md, section 3).
func (n *Node) addresses(encoded [][]byte, known bool) peer.AddrInfo {
	var info, spared peer.AddrInfo // spared: does not pass here, as far as we know
	direct, relayed := 0, 0
	places := make(map[netip.Addr]int)
	for _, b := range encoded {
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			continue
		}
		one, err := peer.AddrInfoFromP2pAddr(a)
		if err != nil || len(one.Addrs) != 1 || info.ID != "" && one.ID != info.ID {
			continue
		}
		dialled, count, most := one.Addrs[0], &direct, maxDirect
		if relay, ok := transport.RelayOf(dialled); ok {
			way, err := peer.AddrInfoFromP2pAddr(relay)
			if err != nil || len(way.Addrs) > 1 || len(dialled) != len(relay)+1 { // /p2p-circuit ends it
				continue
			}
			count, most = &relayed, maxRelayed
			if dialled = nil; len(way.Addrs) == 1 {
				dialled = way.Addrs[0]
			}
		}
		if !n.cfg.Host.Permits(one.Addrs[0]) {
			continue
		}
		if dialled != nil {
			if _, again := transport.RelayOf(dialled); again || !n.reachable(dialled, known) {
				continue
			}
			p := placeOf(dialled)
			if p.IsValid() && places[p] == maxPerPlace {
				continue
			}
			places[p]++
		}
		if *count < most {
			*count++
			if dialled != nil && n.checker.spared(dialled) {
				spared.ID = one.ID
				spared.Addrs = append(spared.Addrs, one.Addrs[0])
				continue
			}
			info.ID = one.ID
			info.Addrs = append(info.Addrs, one.Addrs[0])
		}
	}
	if len(info.Addrs) == 0 {
		return spared
	}
	return info
}

// remember keeps where a device was reached. That is a help for the next time
// and no more, so it is not an error if it fails.
func (c *courier) remember(ctx context.Context, conv *conversation) {
	where := encodeAddresses(peer.AddrInfo{ID: conv.remote(), Addrs: []ma.Multiaddr{transport.Dialable(conv.stream.Conn().RemoteMultiaddr())}})
	err := c.n.update(ctx, func(w *work) error {
		d, err := w.tx.Device(c.device[:])
		if err != nil || bytes.Equal(d.Addresses, where) {
			return err
		}
		d.Addresses = where
		return w.tx.SaveDevice(d)
	})
	if err != nil && ctx.Err() == nil {
		c.n.log.Debug("where a contact was reached could not be kept")
	}
}

func encodeAddresses(info peer.AddrInfo) []byte {
	var b cryptobyte.Builder
	addrs, err := peer.AddrInfoToP2pAddrs(&info)
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(a.Bytes()) })
	}
	return b.BytesOrPanic()
}

func decodeAddresses(encoded []byte) (info peer.AddrInfo) {
	in := cryptobyte.String(encoded)
	for !in.Empty() {
		var b cryptobyte.String
		if !in.ReadUint16LengthPrefixed(&b) {
			return peer.AddrInfo{}
		}
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			return peer.AddrInfo{}
		}
		one, err := peer.AddrInfoFromP2pAddr(a)
		if err != nil {
			return peer.AddrInfo{}
		}
		info.ID = one.ID
		info.Addrs = append(info.Addrs, one.Addrs...)
	}
	return info
}
