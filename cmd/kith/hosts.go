package main

// The libp2p hosts of a daemon: which networks they are in, their keys, where they
// listen, and the ways in that they remember.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node"
	"github.com/kith-im/kith/node/api"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

const (
	// waysKept is how many addresses of community nodes are remembered.
	waysKept = 64
	// keyMeta is where the store keeps a community node's transport key.
	keyMeta = "host key"
)

// reach is which classes of addresses the network of this daemon has. The open
// internet has public ones alone, and there nothing else is believed or
// dialled. Where the ways in or the listeners lie on a LAN or on this machine,
// so does the network. Nothing is known of a daemon without any way in, so it
// may follow an invite anywhere; the next start knows more.
func (d *daemon) reach(ways []peer.AddrInfo) transport.Reach {
	if d.preset == presetOffline {
		return 0
	}
	reach := transport.Public
	for _, info := range slices.Concat(d.bootstrap, ways) {
		for _, a := range info.Addrs {
			reach |= transport.ReachOf(a)
		}
	}
	for _, a := range slices.Concat(d.listen, d.bridges) {
		reach |= transport.ReachOf(a)
	}
	if len(d.bootstrap) == 0 && len(ways) == 0 {
		reach |= transport.Private | transport.Loopback
	}
	return reach
}

// hosts makes the host for conversations and the one for look-ups. A community
// node has one for both, with an identity that lasts.
func (d *daemon) hosts(ctx context.Context, st *store.Store, reach transport.Reach, front *bridgeFront) (main, errands *transport.Host, err error) {
	if d.role == node.RoleCommunity {
		key, err := hostKey(ctx, st)
		if err != nil {
			return nil, nil, err
		}
		main, err = transport.New(transport.Config{
			Key: key, Role: transport.Community, Relay: true, Listen: d.listen, Memory: d.meter.Budget().Memory, Meter: d.meter, Dial: reach,
			Bridge: front.host(), PortMapping: d.asksRouters(), Log: d.log,
		})
		return main, main, d.explainListen(err)
	}
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	// A contact may be on the same LAN, whatever network the directory is in.
	main, err = transport.New(transport.Config{
		Key: key, Role: transport.Contacts, Listen: d.listen, Memory: d.meter.Budget().Memory / 2, Meter: d.meter, Mode: d.mode, Dial: reach | d.private(),
		DialTCP: d.dialTCP(reach | d.private()), Veil: transport.VeilClient{Hellos: d.hellos(), Memory: d.lessons},
		PortMapping: d.asksRouters(), Log: d.log,
	})
	if err != nil {
		return nil, nil, d.explainListen(err)
	}
	if errands, err = d.errand(reach, d.meter.Budget().Memory/2); err != nil {
		main.Close()
		return nil, nil, err
	}
	return main, errands, nil
}

// asksRouters says whether routers are asked for ports.
func (d *daemon) asksRouters() bool {
	return d.cfg.upnp.value && len(d.listen) > 0 && d.preset != presetOffline
}

// errand makes a host without a listener, under a name that nobody has seen.
func (d *daemon) errand(reach transport.Reach, memory int64) (*transport.Host, error) {
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return transport.New(transport.Config{
		Key: key, Role: transport.Errands, Memory: memory, Meter: d.meter, Mode: d.mode, Dial: reach, DialTCP: d.dialTCP(reach),
		Veil: transport.VeilClient{Hellos: d.hellos(), Memory: d.lessons}, Log: d.log,
	})
}

// explainListen says why a host can not be opened: mostly it is an address of
// --listen, or a bridge's.
func (d *daemon) explainListen(err error) error {
	var failed *transport.ListenError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &failed):
		return &api.Error{Code: api.CodeInternal, Message: "the network can not be opened: " + err.Error(), Hint: "start it again"}
	}
	flag, denied := "--listen", "choose a port from 1024 on with --listen"
	if d.bridge != nil && d.bridge.front.Listen.Equal(failed.Addr) {
		flag, denied = "--bridge-listen", "give it the capability CAP_NET_BIND_SERVICE (docs/operate/bridge.md), or put a web server before it with --bridge-behind"
	}
	e := &api.Error{Code: api.CodeNetwork}
	switch failed.Reason {
	case transport.ListenInUse:
		e.Message = fmt.Sprintf("another program already listens on %s", failed.Addr)
		e.Hint = "stop it, or choose another port with " + flag
		if flag == "--bridge-listen" {
			e.Hint += "; if it is your web server, add --bridge-behind"
		}
	case transport.ListenNotHere:
		e.Message = fmt.Sprintf("this machine has no address for %s", failed.Addr)
		e.Hint = "choose one that it has with " + flag + ", or all with /ip4/0.0.0.0"
	case transport.ListenDenied:
		e.Message = fmt.Sprintf("this user may not listen on %s", failed.Addr)
		e.Hint = denied
	case transport.ListenUnsupported:
		e.Code = api.CodeUsage
		e.Message = fmt.Sprintf("%s is neither QUIC nor TCP on an IP address", failed.Addr)
		e.Hint = "for example --listen /ip4/0.0.0.0/udp/4040/quic-v1 or --listen /ip4/0.0.0.0/tcp/4040"
	case transport.ListenFailed:
		e.Message = fmt.Sprintf("kith can not listen on %s: %v", failed.Addr, failed.Err)
		e.Hint = "choose another address with " + flag
	}
	return e
}

// hostKey returns a community node's transport key; the first start makes it.
func hostKey(ctx context.Context, st *store.Store) (key crypto.PrivKey, err error) {
	err = st.Update(ctx, func(tx *store.Tx) error {
		b, err := tx.SecretMeta(keyMeta)
		if err == nil {
			key, err = crypto.UnmarshalPrivateKey(b)
			return err
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if key, err = transport.NewKey(rand.Reader); err != nil {
			return err
		}
		if b, err = crypto.MarshalPrivateKey(key); err != nil {
			return err
		}
		return tx.SetSecretMeta(keyMeta, b)
	})
	if err != nil {
		return nil, fmt.Errorf("load the node's key: %w", err)
	}
	return key, nil
}

// remembered returns the community nodes of earlier runs, best first.
func remembered(ctx context.Context, st *store.Store) ([]peer.AddrInfo, error) {
	var ways []peer.AddrInfo
	err := st.View(ctx, func(tx *store.Tx) error {
		addrs, err := tx.Ways(waysKept)
		if err != nil {
			return err
		}
		for _, s := range addrs {
			info, err := peer.AddrInfoFromString(s)
			if err != nil {
				continue // written by another version; the rest is as good
			}
			if i := slices.IndexFunc(ways, func(w peer.AddrInfo) bool { return w.ID == info.ID }); i >= 0 {
				ways[i].Addrs = append(ways[i].Addrs, info.Addrs...)
				continue
			}
			ways = append(ways, *info)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load the known nodes: %w", err)
	}
	return ways, nil
}

// remember keeps community nodes for the next run, best first.
func (d *daemon) remember(ctx context.Context, st *store.Store, ways []peer.AddrInfo) {
	now := time.Now().UnixMilli()
	err := st.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		rank := int64(0)
		for _, info := range ways {
			addrs, err := peer.AddrInfoToP2pAddrs(&info)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				// The order is kept by time: one millisecond less for each.
				if err := tx.RememberWay(a.String(), now-rank, waysKept); err != nil {
					return err
				}
				rank++
			}
		}
		return nil
	})
	if err != nil {
		d.log.Warn("the known nodes could not be remembered")
	}
}

// hints are the ways in that this user's invites name.
func (d *daemon) hints(ways []peer.AddrInfo) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, info := range slices.Concat(d.bootstrap, ways) {
		if addrs, err := peer.AddrInfoToP2pAddrs(&info); err == nil && len(addrs) > 0 {
			out = append(out, addrs[0])
		}
	}
	return out
}
