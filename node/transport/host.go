// Package transport builds the libp2p host: which transports it speaks, what it
// tells strangers, whom it talks to, and how much it may use. It is assembled
// by hand from its parts: WebRTC, WebTransport, HTTP/3 and WebSocket aren't
// linked, and multicast isn't switched on. Community nodes relay; a user's host
// for conversations is relayed, and goes through NATs to accepted contacts.
package transport

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/gologshim"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/quic-go/quic-go"

	"github.com/kith-im/kith/protocol"
)

// Role is what a host is for. It never changes on its own.
type Role uint8

const (
	Errands   Role = iota + 1 // a user's look-ups: dials, never listens, throw-away identity
	Contacts                  // a user's conversations: may listen, tells strangers no address
	Community                 // a community node: listens and publishes its addresses
)

// agent is what identify tells anyone who connects. It has to be set: left
// empty, libp2p tells the name of our main module.
const agent = "go-libp2p"

// Config describes a host. Key, Role and Memory are required.
type Config struct {
	Key    crypto.PrivKey // Ed25519
	Role   Role
	Listen []ma.Multiaddr // TCP and QUIC; empty for Errands
	Memory int64          // budget in bytes, at least MinMemory
	Mode   Mode           // at the start; Host.SetMode changes it
	// Dial is the set of address classes the host may dial: Public, and
	// Private or Loopback if the user's own ways in lie there. Without any the host
	// dials what AllowNear says alone, and looks no name up.
	Dial Reach
	// Blocked reports peers to refuse in both directions; it may be nil and is
	// called from many goroutines.
	Blocked func(peer.ID) bool
	Veil    VeilClient // how bridges are dialled
	Bridge  *Bridge    // if set, the host is a bridge
	// DialTCP, if set, opens every TCP connection, and to names as they are: it
	// leads through a proxy. There is no QUIC then, which would go past it, and
	// nothing is resolved here.
	DialTCP DialFunc
	// Relay has a community node relay for peers that can't be reached, and tell
	// those that ask whether they can. Others must leave it false.
	Relay bool
	// PortMapping has the host ask routers of the LAN for ports, by UPnP and
	// NAT-PMP. That tells everybody there that we listen.
	PortMapping bool
	// Meter counts what the host uses and holds it to a budget; hosts may share
	// one. nil makes one without limits.
	Meter *Meter
	// Transports, if set, replaces TCP and QUIC.
	Transports func(transport.Upgrader, network.ResourceManager) ([]transport.Transport, error)
	Log        *slog.Logger
}

// Host is a running libp2p host.
type Host struct {
	*basichost.BasicHost
	role   Role
	calls  *unproven
	mode   *modeState
	ping   *ping.PingService
	places *places
	quic   *quicreuse.ConnManager // nil without QUIC
	meter  *Meter
	near   atomic.Pointer[func(ma.Multiaddr) bool]
	roads  *roads
	veil   *veilDialer // nil on a simulated network
	closed sync.Once

	relay   *relay.Relay // nil: this host doesn't relay
	relayed relayCounts
	through through
}

var _ host.Host = (*Host)(nil)

// NewKey makes the identity of a host from 32 bytes of rand.
func NewKey(rand io.Reader) (crypto.PrivKey, error) {
	key, _, err := crypto.GenerateEd25519Key(rand)
	if err != nil {
		return nil, fmt.Errorf("make a host key: %w", err)
	}
	return key, nil
}

// SilenceLibraries stops libp2p's own logging, which names peers and addresses.
// main calls it once, before the first host.
func SilenceLibraries() { gologshim.SetDefaultHandler(slog.DiscardHandler) }

// New builds a host and listens. The error is a *ListenError where an address
// can't be had. The caller closes the host.
func New(cfg Config) (_ *Host, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("host identity: %w", err)
	}
	var undo closers
	defer func() {
		if err != nil {
			undo.close()
		}
	}()

	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return nil, fmt.Errorf("peer store: %w", err)
	}
	undo.add(store.Close)
	if err := errors.Join(store.AddPrivKey(id, cfg.Key), store.AddPubKey(id, cfg.Key.GetPublic())); err != nil {
		return nil, fmt.Errorf("peer store: %w", err)
	}

	limits := limitsFor(cfg.Memory, cfg.Meter.budget.Connections)
	manager, err := limits.resourceManager()
	if err != nil {
		return nil, fmt.Errorf("resource limits: %w", err)
	}
	undo.add(manager.Close)

	mode := newModeState(cfg)
	h := &Host{meter: cfg.Meter, role: cfg.Role, mode: mode, places: newPlaces(limits.inbound), roads: newRoads()}
	h.calls = newUnproven(h.roads)
	gate := gater{reach: cfg.Dial, names: cfg.DialTCP != nil && cfg.Dial != 0, blocked: cfg.Blocked, mode: mode, roads: h.roads, near: &h.near, role: cfg.Role, meter: cfg.Meter, calls: h.calls}
	resources := &metered{ResourceManager: manager, meter: cfg.Meter, role: cfg.Role, end: func(p peer.ID) { go func() { _ = h.Network().ClosePeer(p) }() }}
	bus := eventbus.NewBus()
	options := []swarm.Option{
		swarm.WithConnectionGater(gate),
		swarm.WithResourceManager(resources),
		swarm.WithMetrics(reporter(cfg)),
	}
	if cfg.DialTCP != nil {
		options = append(options, swarm.WithDialTimeout(proxyDialTimeout), swarm.WithDialTimeoutLocal(proxyDialTimeout),
			swarm.WithMultiaddrResolver(noNames{}))
	} else {
		options = append(options, swarm.WithDialTimeout(dialTimeout), swarm.WithDialTimeoutLocal(dialTimeout))
	}
	sw, err := swarm.NewSwarm(id, book{store, store, mode, cfg.Dial}, bus, options...)
	if err != nil {
		return nil, fmt.Errorf("swarm: %w", err)
	}
	undo.add(sw.Close)

	gate.calls.sw.Store(sw)
	sw.Notify(h.places)
	sw.Notify(&network.NotifyBundle{ConnectedF: gate.calls.connected})
	sw.Notify(&network.NotifyBundle{ConnectedF: h.connected})
	transports, up, err := h.transports(cfg, gate, resources, &undo)
	if err != nil {
		return nil, err
	}
	for _, t := range transports {
		if err := sw.AddTransport(t); err != nil {
			return nil, fmt.Errorf("add transport: %w", err)
		}
	}

	// What we dialled and nobody needs any more is trimmed; for those who dial us
	// there are places.
	trim, err := connmgr.NewConnManager(limits.conns/2, limits.conns*5/8, connmgr.WithGracePeriod(connGrace))
	if err != nil {
		return nil, fmt.Errorf("connection manager: %w", err)
	}
	undo.add(trim.Close)

	h.BasicHost, err = basichost.NewHost(sw, &basichost.HostOpts{
		EventBus:                bus,
		ConnManager:             trim,
		UserAgent:               agent,
		NegotiationTimeout:      FirstByteTimeout,
		DisableSignedPeerRecord: cfg.Role != Community,
		AddrsFactory:            cfg.published,
		NATManager:              h.through.mapper(cfg),
	})
	if err != nil {
		return nil, fmt.Errorf("host: %w", err)
	}
	undo = undo[:0]
	undo.add(h.Close) // closes all of the above
	h.ping = &ping.PingService{Host: h.BasicHost}
	h.SetStreamHandler(ping.ID, h.ping.PingHandler)
	h.Start()
	if err := h.openRoads(cfg, limits, up); err != nil {
		return nil, err
	}

	// One address that can't be had is an error: the user asked for each.
	if cfg.Mode == Open {
		if err := listen(sw, cfg.Listen); err != nil {
			return nil, err
		}
	}
	if cfg.Bridge != nil {
		if err := sw.AddListenAddr(veilListenAddr(cfg.Bridge.Listen)); err != nil {
			return nil, newListenError(cfg.Bridge.Listen, err)
		}
	}
	cfg.Log.Debug("host is up", "listeners", len(cfg.Listen), "connections", limits.conns)
	return h, nil
}

func (cfg *Config) check() error {
	switch {
	case !onlyEd25519(cfg.Key):
		return errors.New("host key isn't an Ed25519 key")
	case cfg.Role < Errands || cfg.Role > Community:
		return fmt.Errorf("unknown host role %d", cfg.Role)
	case cfg.Role == Errands && len(cfg.Listen) > 0:
		return errors.New("a host for errands doesn't listen")
	case cfg.Role == Community && cfg.Mode != Open:
		return errMode
	case cfg.Relay && cfg.Role != Community:
		return errors.New("only a community node relays")
	case cfg.PortMapping && len(cfg.Listen) == 0:
		return errors.New("a host that doesn't listen needs no ports")
	case cfg.Memory < MinMemory:
		return fmt.Errorf("memory budget of %d bytes is under %d", cfg.Memory, int64(MinMemory))
	}
	if cfg.Veil.DialTCP == nil {
		cfg.Veil.DialTCP = cfg.DialTCP
	}
	if cfg.Meter == nil {
		cfg.Meter = NewMeter(Budget{}, nil)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// published is what identify and the DHT may tell of our addresses. A user's
// contacts get them inside sealed records, nobody else does (threats D05).
func (cfg *Config) published(addrs []ma.Multiaddr) []ma.Multiaddr {
	if cfg.Role != Community {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(addrs), HasPath)
}

// ListenAddrs returns the addresses the host listens on, interfaces resolved,
// and those that routers of the LAN gave it, whatever its role publishes. Those
// at which relays listen for it are not among them, nor is a bridge's.
func (h *Host) ListenAddrs() ([]ma.Multiaddr, error) {
	listen := slices.DeleteFunc(h.Network().ListenAddresses(), func(a ma.Multiaddr) bool { return isRelayed(a) || HasPath(a) })
	if len(listen) == 0 {
		return nil, nil
	}
	// The swarm would answer from a memory of up to a minute, in which a laptop has
	// long been elsewhere.
	addrs, err := manet.ResolveUnspecifiedAddresses(listen, nil)
	if err != nil {
		return nil, err
	}
	return append(addrs, h.mapped(listen)...), nil
}

// AllowNear lets the host dial private addresses for which near reports that
// somebody we know was heard there on the local network, whatever Config.Dial
// says. near is called from many goroutines.
func (h *Host) AllowNear(near func(ma.Multiaddr) bool) { h.near.Store(&near) }

// BridgeAddr returns the address that the bridge listens on, /ip4 or /ip6 and
// /tcp, or nil if the host is none.
func (h *Host) BridgeAddr() ma.Multiaddr {
	for _, a := range h.Network().ListenAddresses() {
		if HasPath(a) {
			return a.Decapsulate(listening)
		}
	}
	return nil
}

// ForgetFailures lets every address be dialled again at once that could not be
// reached: the network is another one now, or the machine has slept. Of bridges
// what was learnt on this network counts from now on.
func (h *Host) ForgetFailures() {
	if h.veil != nil {
		h.veil.moved()
	}
	sw, ok := h.Network().(*swarm.Swarm)
	if !ok {
		return
	}
	for _, p := range h.Peerstore().Peers() {
		sw.Backoff().Clear(p)
	}
}

// Meter returns what counts the host's use.
func (h *Host) Meter() *Meter { return h.meter }

// HandleSecret serves streams whose protocol name secret accepts, without the
// name or the number of such names showing in identify. They hide behind ping,
// which every libp2p host lists and which goes on working. Call it at most once.
func (h *Host) HandleSecret(secret func(libp2p.ID) bool, handle network.StreamHandler) {
	h.SetStreamHandlerMatch(ping.ID,
		func(name libp2p.ID) bool { return name == ping.ID || secret(name) },
		func(s network.Stream) {
			if s.Protocol() == ping.ID {
				h.ping.PingHandler(s)
				return
			}
			handle(s)
		})
}

// Close closes all connections and listeners and returns when the host's
// goroutines have ended. Stream handlers see their streams reset. Closing again
// does nothing.
func (h *Host) Close() (err error) {
	h.closed.Do(func() {
		h.mode.changing.Lock()
		h.mode.dead = true
		h.mode.changing.Unlock()
		h.closeRoads()
		// First, or identify waits for up to five seconds to tell a peer that has
		// fallen silent which protocols we no longer speak.
		err = errors.Join(h.Network().Close(), h.BasicHost.Close())
		h.places.closing.Wait()
		if h.quic != nil {
			err = errors.Join(err, h.quic.Close())
		}
	})
	return err
}

// transports builds what the swarm dials and listens with, and what secures a
// connection through a relay.
func (h *Host) transports(cfg Config, gate gater, resources network.ResourceManager, undo *closers) ([]transport.Transport, transport.Upgrader, error) {
	window := *yamux.DefaultTransport
	window.MaxStreamWindowSize = maxStreamWindow
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: &window}}
	tlsSecurity, err := libp2ptls.New(libp2ptls.ID, cfg.Key, muxers)
	if err != nil {
		return nil, nil, fmt.Errorf("tls: %w", err)
	}
	noiseSecurity, err := noise.New(noise.ID, cfg.Key, muxers)
	if err != nil {
		return nil, nil, fmt.Errorf("noise: %w", err)
	}
	// In order of preference: TLS moves 1.6 times as much as Noise.
	security := []sec.SecureTransport{tlsSecurity, noiseSecurity}
	up, err := upgrader.New(security, muxers, nil, resources, gate, upgrader.WithAcceptTimeout(handshakeTimeout))
	if err != nil {
		return nil, nil, fmt.Errorf("upgrader: %w", err)
	}
	// What goes through a relay may go through a bridge, where a write waits for as
	// long as a slow line, or the next connection, takes.
	patient := window
	patient.ConnectionWriteTimeout = streamPatience
	relayed, err := upgrader.New(security, []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: &patient}}, nil, resources, gate, upgrader.WithAcceptTimeout(handshakeTimeout))
	if err != nil {
		return nil, nil, fmt.Errorf("upgrader: %w", err)
	}
	if cfg.Transports != nil {
		all, err := cfg.Transports(up, resources)
		return all, relayed, err
	}
	veil, err := newVeil(cfg, window, gate, resources)
	if err != nil {
		return nil, nil, err
	}
	h.veil = veil.dialer

	options := []tcp.Option{tcp.WithConnectionTimeout(dialTimeout)}
	if cfg.Role != Contacts { // who goes through NATs dials from where it listens
		options = append(options, tcp.DisableReuseport())
	}
	tcpTransport, err := tcp.NewTCPTransport(up, resources, nil, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("tcp: %w", err)
	}
	if cfg.DialTCP != nil {
		return []transport.Transport{&proxiedTCP{tcpTransport, up, resources, h.spareNear(cfg.DialTCP)}, veil}, relayed, nil
	}
	h.quic, err = newQUIC(cfg.Key, resources)
	if err != nil {
		return nil, nil, fmt.Errorf("quic: %w", err)
	}
	undo.add(h.quic.Close)
	quicTransport, err := libp2pquic.NewTransport(cfg.Key, h.quic, nil, gate, resources)
	if err != nil {
		return nil, nil, fmt.Errorf("quic: %w", err)
	}
	nearTransport, err := newNearTCP(tcpTransport, up, resources)
	if err != nil {
		return nil, nil, fmt.Errorf("tcp: %w", err)
	}
	return []transport.Transport{nearTransport, quicTransport, veil}, relayed, nil
}

// newQUIC makes the socket manager of QUIC. The resource manager is wired in
// by hand: without the connection context a QUIC handshake passes by every
// limit, and without address verification a forged source makes us answer a
// victim (threats F15).
func newQUIC(key crypto.PrivKey, resources network.ResourceManager) (*quicreuse.ConnManager, error) {
	seed, err := key.Raw()
	if err != nil {
		return nil, err
	}
	// The reset key outlives a restart with the host key: a peer's old
	// connection then ends at its next packet instead of its timeout.
	keys, err := hkdf.Key(sha256.New, seed, nil, protocol.LabelQUICKeys, 64)
	if err != nil {
		return nil, err
	}
	return quicreuse.NewConnManager(quic.StatelessResetKey(keys[:32]), quic.TokenGeneratorKey(keys[32:]),
		quicreuse.ConnContext(func(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
			addr, err := quicreuse.ToQuicMultiaddr(client.RemoteAddr, quic.Version1)
			if err != nil {
				addr = nil // the resource manager decides about nameless ones too
			}
			scope, err := resources.OpenConnection(network.DirInbound, false, addr)
			if err != nil {
				return ctx, err
			}
			context.AfterFunc(ctx, scope.Done)
			return network.WithConnManagementScope(ctx, scope), nil
		}),
		quicreuse.VerifySourceAddress(func(addr net.Addr) bool { return resources.VerifySourceAddress(addr) }),
	)
}

// closers undo a construction, last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c closers) close() {
	for i := len(c) - 1; i >= 0; i-- {
		_ = c[i]() // the error that made us undo is the one to report
	}
}
