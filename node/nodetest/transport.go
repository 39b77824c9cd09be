package nodetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/node/transport"
)

// Port is where hosts made by Host listen.
const Port = 4001

// settle is how long a bubble goes on after its hosts are closed. libp2p leaves
// goroutines behind that wait for a deadline of up to a minute.
const settle = 90 * time.Second

// Bubble runs f in a testing/synctest bubble with a network of its own. What t's
// cleanup functions close is closed inside the bubble, and all goroutines have
// to end.
func Bubble(t *testing.T, seed uint64, f func(*testing.T, *Network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(settle) }) // runs last
		f(t, NewNetwork(seed))
	})
}

// IP returns the address of machine i, below 20,480. Each is public and in a
// /16 of its own, so that no limit per subnet takes two for neighbours.
func IP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(20 + i/256), byte(i), 0, 1})
}

// Host makes a host on the machine ip and closes it when the test ends. What
// cfg leaves empty is filled in: a new key, the least memory, dialling public
// addresses, and unless it runs errands, listening on Port.
func (n *Network) Host(t testing.TB, cfg transport.Config, ip netip.Addr) *transport.Host {
	t.Helper()
	h, err := n.host(cfg, ip)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// Errand makes a host without a listener for a machine that has not crashed.
// Its user closes it. meter counts what it uses.
func (n *Network) Errand(ip netip.Addr, meter *transport.Meter) (*transport.Host, error) {
	n.mu.Lock()
	dead := n.dead[ip]
	n.mu.Unlock()
	if dead {
		return nil, errors.New("the machine has crashed")
	}
	return n.host(transport.Config{Role: transport.Errands, Meter: meter}, ip)
}

func (n *Network) host(cfg transport.Config, ip netip.Addr) (_ *transport.Host, err error) {
	if cfg.Key == nil {
		if cfg.Key, err = transport.NewKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	if cfg.Role == 0 {
		cfg.Role = transport.Contacts
	}
	if cfg.Listen == nil && cfg.Role != transport.Errands {
		cfg.Listen = []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/%s/tcp/%d", ip, Port))}
	}
	if cfg.Memory == 0 {
		cfg.Memory = transport.MinMemory
	}
	if cfg.Dial == 0 {
		cfg.Dial = transport.Public
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Transports = n.Transports(ip)
	h, err := transport.New(cfg)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[ip] = append(n.hosts[ip], h)
	return h, nil
}

// Transports returns the transport of the machine ip, for transport.Config, and
// brings the machine back if it was killed.
func (n *Network) Transports(ip netip.Addr) func(libp2p.Upgrader, network.ResourceManager) ([]libp2p.Transport, error) {
	return func(up libp2p.Upgrader, resources network.ResourceManager) ([]libp2p.Transport, error) {
		n.mu.Lock()
		delete(n.dead, ip)
		n.mu.Unlock()
		return []libp2p.Transport{&simTransport{n, ip, up, resources}}, nil
	}
}

// AddrInfo returns how to dial h, whatever it publishes.
func AddrInfo(t testing.TB, h *transport.Host) peer.AddrInfo {
	t.Helper()
	addrs, err := h.ListenAddrs()
	if err != nil {
		t.Fatal(err)
	}
	return peer.AddrInfo{ID: h.ID(), Addrs: addrs}
}

// simTransport is libp2p's TCP transport with Network in the place of the kernel.
type simTransport struct {
	network   *Network
	ip        netip.Addr
	upgrader  libp2p.Upgrader
	resources network.ResourceManager
}

var _ libp2p.Transport = (*simTransport)(nil)

func (s *simTransport) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (libp2p.CapableConn, error) {
	scope, err := s.resources.OpenConnection(network.DirOutbound, true, addr)
	if err != nil {
		return nil, err
	}
	c, err := s.dial(ctx, addr, p, scope)
	if err != nil {
		scope.Done()
		return nil, err
	}
	return c, nil
}

func (s *simTransport) dial(ctx context.Context, addr ma.Multiaddr, p peer.ID, scope network.ConnManagementScope) (libp2p.CapableConn, error) {
	if err := scope.SetPeer(p); err != nil {
		return nil, err
	}
	to, err := addrPort(addr)
	if err != nil {
		return nil, err
	}
	raw, err := s.network.dial(ctx, s.ip, to)
	if err != nil {
		return nil, err
	}
	c, err := manet.WrapNetConn(raw)
	if err != nil {
		raw.abort()
		return nil, err
	}
	direction := network.DirOutbound
	if both, client, _ := network.GetSimultaneousConnect(ctx); both && !client {
		direction = network.DirInbound // of two that dial each other one has to answer
	}
	up, err := s.upgrader.Upgrade(ctx, s, c, direction, p, scope)
	if err != nil {
		return nil, err
	}
	return &tappedConn{up, s.network, s.ip, to.Addr()}, nil
}

func (s *simTransport) Listen(addr ma.Multiaddr) (libp2p.Listener, error) {
	at, err := addrPort(addr)
	if err != nil {
		return nil, err
	}
	if at.Addr() != s.ip {
		return nil, fmt.Errorf("machine %s has no address %s", s.ip, at.Addr())
	}
	raw, err := s.network.listen(at)
	if err != nil {
		return nil, err
	}
	l, err := manet.WrapNetListener(raw)
	if err != nil {
		return nil, err
	}
	return &tappedListener{s.upgrader.UpgradeGatedMaListener(s, s.upgrader.GateMaListener(l)), s.network, s.ip}, nil
}

func addrPort(addr ma.Multiaddr) (netip.AddrPort, error) {
	_, hostPort, err := manet.DialArgs(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(hostPort)
}

func (s *simTransport) CanDial(addr ma.Multiaddr) bool {
	if len(addr) != 2 || addr[1].Protocol().Code != ma.P_TCP {
		return false
	}
	_, err := addrPort(addr)
	return err == nil
}

func (s *simTransport) Protocols() []int { return []int{ma.P_TCP} }
func (s *simTransport) Proxy() bool      { return false }
func (s *simTransport) String() string   { return "simulated TCP" }

// tappedListener, tappedConn and tappedStream bring what is written to streams
// to Network.Tap.
type tappedListener struct {
	libp2p.Listener
	network *Network
	ip      netip.Addr
}

func (l *tappedListener) Accept() (libp2p.CapableConn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	from, err := addrPort(c.RemoteMultiaddr())
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &tappedConn{c, l.network, l.ip, from.Addr()}, nil
}

type tappedConn struct {
	libp2p.CapableConn
	network       *Network
	local, remote netip.Addr
}

func (c *tappedConn) OpenStream(ctx context.Context) (network.MuxedStream, error) {
	s, err := c.CapableConn.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return &tappedStream{MuxedStream: s, conn: c}, nil
}

func (c *tappedConn) AcceptStream() (network.MuxedStream, error) {
	s, err := c.CapableConn.AcceptStream()
	if err != nil {
		return nil, err
	}
	return &tappedStream{MuxedStream: s, conn: c}, nil
}

type tappedStream struct {
	network.MuxedStream
	conn *tappedConn

	mu   sync.Mutex
	tap  func([]byte) []byte
	taps int // which of the network's taps that is
}

func (s *tappedStream) Write(b []byte) (int, error) {
	out := s.through(b)
	if len(out) == 0 {
		return len(b), nil
	}
	if _, err := s.MuxedStream.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// through returns what travels in the place of b.
func (s *tappedStream) through(b []byte) []byte {
	n := s.conn.network
	n.mu.Lock()
	tap, taps := n.tap, n.taps
	n.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if taps != s.taps {
		if s.tap, s.taps = nil, taps; tap != nil {
			s.tap = tap(s.conn.local, s.conn.remote)
		}
	}
	if s.tap == nil {
		return b
	}
	return s.tap(b)
}
