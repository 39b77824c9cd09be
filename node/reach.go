package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/invite"
	"github.com/kith-im/kith/protocol/rendezvous"
	"github.com/kith-im/kith/protocol/stream"
)

// reachTime bounds one attempt to reach a device, look-ups included.
const reachTime = 30 * time.Second

// maxRemembered bounds the addresses kept of a device.
const maxRemembered = 4

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
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	d, keys, err := c.secrets(ctx)
	if err != nil {
		return nil, err
	}
	// All ways end with a connection; only then is a stream opened, once.
	results := make(chan outcome)
	tries := 0
	try := func(way func() outcome) {
		tries++
		go func() {
			select {
			case results <- way():
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
	if old := decodeAddresses(d.Addresses); len(old.Addrs) > 0 && d.Public != nil {
		try(func() outcome { return outcome{id: old.ID, keys: keys, err: c.connect(ctx, old)} })
	}
	try(func() outcome { return c.seek(ctx, d, keys) })
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
		var conv *conversation
		if conv, err = c.open(ctx, r.keys, r.id); err == nil {
			c.remember(ctx, conv)
			return conv, nil
		}
	}
	return nil, err
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

// seek finds what the device has announced, learns from it, and connects.
func (c *courier) seek(ctx context.Context, d store.DeviceRow, keys []protocol.Shared) outcome {
	found, at, err := c.find(ctx, keys)
	if err != nil {
		return outcome{err: err}
	}
	if keys, err = c.digest(ctx, d, keys, found, at); err != nil {
		return outcome{err: err}
	}
	info := c.addresses(found.Body.Addresses)
	return outcome{id: info.ID, keys: keys, err: c.connect(ctx, info)}
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

// connect makes sure that there is a connection to a peer.
func (c *courier) connect(ctx context.Context, info peer.AddrInfo) error {
	if len(info.Addrs) == 0 {
		return errDial
	}
	if err := c.n.cfg.Host.Connect(ctx, info); err != nil {
		return errors.Join(errDial, ctx.Err())
	}
	return nil
}

// open opens a conversation with a device on a connection.
func (c *courier) open(ctx context.Context, keys []protocol.Shared, id peer.ID) (*conversation, error) {
	today := rendezvous.Day(c.n.now())
	names := make(map[libp2p.ID]protocol.StreamKey)
	var order []libp2p.ID
	for _, k := range keys {
		name := libp2p.ID(stream.Name(k.Stream, today))
		names[name] = k.Stream
		order = append(order, name)
	}
	s, err := c.n.cfg.Host.NewStream(ctx, id, order...)
	if err != nil {
		return nil, errors.Join(errDial, ctx.Err())
	}
	conv := newConversation(s, names[s.Protocol()], c.device, true, c.n.roadOf(s.Conn()))
	if err := conv.greet(ctx, c.n.self.rand); err != nil {
		conv.reset()
		if errors.Is(err, stream.ErrHello) {
			return nil, err
		}
		return nil, errors.Join(errDial, ctx.Err())
	}
	return conv, nil
}

// addresses reads the addresses of a record: all of one peer, at most
// maxRemembered, and none that we may not dial.
func (c *courier) addresses(encoded [][]byte) peer.AddrInfo {
	var info, spared peer.AddrInfo // spared: does not pass here, as far as we know
	for _, b := range encoded {
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			continue
		}
		one, err := peer.AddrInfoFromP2pAddr(a)
		if err != nil || len(one.Addrs) == 0 || info.ID != "" && one.ID != info.ID {
			continue
		}
		if c.n.cfg.Reachable != nil && !c.n.cfg.Reachable(one.Addrs[0]) {
			continue
		}
		if c.n.checker.spared(one.Addrs[0]) {
			spared.ID = one.ID
			spared.Addrs = append(spared.Addrs, one.Addrs...)
			continue
		}
		if len(info.Addrs) < maxRemembered {
			info.ID = one.ID
			info.Addrs = append(info.Addrs, one.Addrs...)
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
	where := encodeAddresses(peer.AddrInfo{ID: conv.remote(), Addrs: []ma.Multiaddr{conv.stream.Conn().RemoteMultiaddr()}})
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
