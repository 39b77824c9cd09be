package node

import (
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

// reach opens a conversation with a device: at the addresses where it was last
// reached, and, at the same time, at those it has announced. The first to
// answer wins; a call from the device ends the search. On the way it learns
// what the announcement holds: for a contact whose keys are missing, the keys.
func (n *Node) reach(ctx context.Context, device identity.DeviceHash, calls chan *conversation) (*conversation, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	var d store.DeviceRow
	if err := n.view(ctx, func(tx *store.Tx) (err error) {
		d, err = tx.Device(device[:])
		return err
	}); err != nil {
		return nil, err
	}
	keys, err := sharedKeys(d)
	if err != nil {
		return nil, err
	}
	type outcome struct {
		conv *conversation
		err  error
	}
	results := make(chan outcome, 2)
	tries := 0
	if old := decodeAddresses(d.Addresses); len(old.Addrs) > 0 {
		tries++
		go func() {
			conv, err := n.dial(ctx, device, keys, old)
			results <- outcome{conv, err}
		}()
	}
	tries++
	go func() {
		conv, err := n.seek(ctx, device, d, keys)
		results <- outcome{conv, err}
	}()
	for {
		select {
		case r := <-results:
			tries--
			if r.err == nil {
				cancel()
				go func() { // the other one came too late
					for range tries {
						if r := <-results; r.conv != nil {
							r.conv.close(stream.ReasonSuperseded)
						}
					}
				}()
				return r.conv, nil
			}
			if err = r.err; tries == 0 {
				return nil, err
			}
		case conv := <-calls:
			cancel()
			go func() {
				for range tries {
					if r := <-results; r.conv != nil {
						r.conv.close(stream.ReasonSuperseded)
					}
				}
			}()
			return conv, nil
		}
	}
}

// seek finds what the device has announced, learns from it, and calls.
func (n *Node) seek(ctx context.Context, device identity.DeviceHash, d store.DeviceRow, keys []protocol.Shared) (*conversation, error) {
	found, at, err := n.find(ctx, device, keys)
	if err != nil {
		return nil, err
	}
	if d.Public == nil && found.Body.Bundle == nil {
		return nil, errNoRecord // the invite has ended
	}
	if d.Link != nil && found.Body.Bundle != nil {
		if err := n.learn(ctx, device, found, at); err != nil && d.Public == nil {
			return nil, err
		}
		if err := n.view(ctx, func(tx *store.Tx) (err error) {
			d, err = tx.Device(device[:])
			return err
		}); err != nil {
			return nil, err
		}
		if keys, err = sharedKeys(d); err != nil {
			return nil, err
		}
	}
	conv, err := n.dial(ctx, device, keys, n.addresses(found.Body.Addresses))
	if err != nil {
		return nil, err
	}
	info := peer.AddrInfo{ID: conv.remote(), Addrs: []ma.Multiaddr{conv.stream.Conn().RemoteMultiaddr()}}
	return conv, n.remember(ctx, device, info, found.Seq)
}

// find looks for the device's record under all the secrets that we share with
// it: first where it is today, and then, if nothing is there, where it will be
// tomorrow, because clocks differ.
func (n *Node) find(ctx context.Context, device identity.DeviceHash, keys []protocol.Shared) (discovery.Found, protocol.Shared, error) {
	today := rendezvous.Day(n.now())
	err := errNoRecord
	for day := today; day <= today+1; day++ {
		for _, k := range keys {
			points := rendezvous.Derive(k.Rendezvous, device, day)
			f, findErr := n.cfg.Discovery.Find(ctx, points[:])
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
func (n *Node) learn(ctx context.Context, device identity.DeviceHash, f discovery.Found, at protocol.Shared) error {
	bundle, err := handshake.ParseBundle(f.Body.Bundle, device, at.Bundle, 0, n.now())
	if err != nil {
		return fmt.Errorf("the contact's keys cannot be used: %w", err)
	}
	return n.update(ctx, func(w *work) error {
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
		c, err := w.tx.Contact(d.Contact)
		if err != nil {
			return err
		}
		if d.Public != nil {
			return w.beginAgain(c, d, link, bundle)
		}
		return w.begin(c, d, link, bundle)
	})
}

// dial opens a conversation at a peer's addresses.
func (n *Node) dial(ctx context.Context, device identity.DeviceHash, keys []protocol.Shared, info peer.AddrInfo) (*conversation, error) {
	if len(info.Addrs) == 0 {
		return nil, errDial
	}
	if err := n.cfg.Host.Connect(ctx, info); err != nil {
		return nil, errors.Join(errDial, ctx.Err())
	}
	today := rendezvous.Day(n.now())
	names := make(map[libp2p.ID]protocol.StreamKey)
	var order []libp2p.ID
	for _, k := range keys {
		name := libp2p.ID(stream.Name(k.Stream, today))
		names[name] = k.Stream
		order = append(order, name)
	}
	s, err := n.cfg.Host.NewStream(ctx, info.ID, order...)
	if err != nil {
		return nil, errors.Join(errDial, ctx.Err())
	}
	conv := newConversation(s, names[s.Protocol()], device, true)
	if err := conv.greet(n.self.rand); err != nil {
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
func (n *Node) addresses(encoded [][]byte) peer.AddrInfo {
	var info peer.AddrInfo
	for _, b := range encoded {
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			continue
		}
		one, err := peer.AddrInfoFromP2pAddr(a)
		if err != nil || len(one.Addrs) == 0 || info.ID != "" && one.ID != info.ID {
			continue
		}
		if n.cfg.Reachable != nil && !n.cfg.Reachable(one.Addrs[0]) {
			continue
		}
		if len(info.Addrs) < maxRemembered {
			info.ID = one.ID
			info.Addrs = append(info.Addrs, one.Addrs...)
		}
	}
	return info
}

// remember keeps where a device was reached.
func (n *Node) remember(ctx context.Context, device identity.DeviceHash, info peer.AddrInfo, seq uint64) error {
	return n.update(ctx, func(w *work) error {
		d, err := w.tx.Device(device[:])
		if err != nil {
			return err
		}
		d.Addresses, d.RecordSeq = encodeAddresses(info), seq
		return w.tx.SaveDevice(d)
	})
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
