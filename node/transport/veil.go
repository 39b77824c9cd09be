package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	ma "github.com/multiformats/go-multiaddr"
)

// DialFunc opens a TCP connection to host:port; the host may be a name. It is
// called from many goroutines.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// VeilClient is how bridges are dialled. The zero value is the default.
type VeilClient struct {
	DialTCP DialFunc       // nil: a net.Dialer; with a proxy, names are resolved there
	Hellos  []Hello        // in order of preference; none: BuiltInHellos
	Memory  VeilMemory     // what worked
	Roots   *x509.CertPool // who may vouch for a site's name; nil: the system's
}

// VeilMemory keeps what was learnt about a server from one network to the next
// run. Both functions are nil, or neither; they are called from many goroutines
// and shouldn't take long. Without them it is kept until the next network.
type VeilMemory struct {
	// Load returns what was learnt on the network we are in, the zero Lesson if nothing.
	Load func(server ServerKey) Lesson
	Save func(server ServerKey, lesson Lesson)
}

// ServerKey stands for a server and the name in the hello: a hash that doesn't
// depend on the secret path.
type ServerKey [32]byte

// Lesson is what worked at one server from one network.
type Lesson struct {
	Hello   string        // name of the hello that got an answer; "" unknown
	Packets int           // estimated packets after which a TCP connection went dead; 0: none did
	Bytes   int           // bytes received until then
	Gap     time.Duration // time to leave between TLS connections
	At      time.Time     // when it was learnt
}

// Bridge makes a host reachable through an ordinary web site.
type Bridge struct {
	Listen ma.Multiaddr // /ip4 or /ip6, /tcp
	// Certificate returns the site's certificate. Nil serves plain HTTP/1.1 for
	// the operator's own web server, on loopback only.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Path reports whether a path (without the slash in front) is one of the
	// secret ones, in a time that doesn't tell how nearly it was.
	Path func(path string) bool
	Site http.Handler // answers every other request
	// NextProtos are offered besides HTTP/2 and HTTP/1.1; acme-tls/1 is one.
	NextProtos []string
}

// veilDialTimeout is for everything until the stream is secured: a few blocked
// hellos, and a dozen exchanges of which each may take a connection of its own.
const veilDialTimeout = 40 * time.Second

var (
	errPeerLeft = errors.New("the other side ended the stream")
	errSilent   = errors.New("the other side fell silent")

	tlsComponent, _ = ma.NewComponent("tls", "")
	// listening marks the address of the listener: a path, as bridges have, but
	// a word that is none of theirs.
	listening = ma.StringCast("/tls/http-path/bridge")
)

// veilTransport is libp2p's view of bridges: streams of HTTP exchanges
// (docs/spec/veil.md) that the upgrader secures and multiplexes as it does TCP.
type veilTransport struct {
	upgrader  transport.Upgrader // patient: see newVeilUpgrader
	resources network.ResourceManager
	dialer    *veilDialer
	bridge    *Bridge
}

var (
	_ transport.Transport    = (*veilTransport)(nil)
	_ transport.SkipResolver = (*veilTransport)(nil)
)

// newVeil makes the transport with an upgrader of its own, patient where others
// need not be: the first contact may take a connection for each exchange, a
// keep-alive of the multiplexer would cost one, and a write may wait until a
// dead connection is found out. That both ends live is the stream's business.
func newVeil(cfg Config, window yamux.Transport, gate gater, resources network.ResourceManager) (*veilTransport, error) {
	window.EnableKeepAlive = false
	window.MeasureRTTInterval = 24 * time.Hour
	window.ConnectionWriteTimeout = streamPatience
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: &window}}
	// Noise takes half the bytes of TLS here, and speed isn't decided here.
	security, err := noise.New(noise.ID, cfg.Key, muxers)
	if err != nil {
		return nil, fmt.Errorf("noise: %w", err)
	}
	up, err := upgrader.New([]sec.SecureTransport{security}, muxers, nil, resources, gate,
		upgrader.WithAcceptTimeout(veilDialTimeout))
	if err != nil {
		return nil, fmt.Errorf("upgrader: %w", err)
	}
	return &veilTransport{
		upgrader: up, resources: resources, bridge: cfg.Bridge,
		dialer: newVeilDialer(cfg.Veil, cfg.Dial),
	}, nil
}

// Dial connects to the bridge at addr. It takes longer than the dial timeout of
// the swarm if it has to: the context counts when it is cancelled, and its
// deadline doesn't.
func (t *veilTransport) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	v, err := ParseVeil(addr)
	if err != nil {
		return nil, err
	}
	scope, err := t.resources.OpenConnection(network.DirOutbound, true, somewhere)
	if err != nil {
		return nil, err
	}
	if err := scope.SetPeer(p); err != nil {
		scope.Done()
		return nil, err
	}
	long, cancel := prolonged(ctx, time.Now().Add(veilDialTimeout))
	defer cancel()
	conn, err := t.dialer.dial(long, v)
	if err != nil {
		scope.Done()
		return nil, err
	}
	c, err := t.upgrader.Upgrade(long, t, conn, network.DirOutbound, p, scope)
	if err != nil {
		conn.Close()
		if cause := conn.cause(); cause != nil {
			err = cause
		}
		return nil, err
	}
	return &veilConn{CapableConn: c, dialled: addr}, nil
}

// veilConn is a connection to a bridge. That it was dialled under one of the
// bridge's secret paths is kept beside what identify may tell of it.
type veilConn struct {
	transport.CapableConn

	dialled ma.Multiaddr
}

// As finds c, too.
func (c *veilConn) As(target any) bool {
	if t, ok := target.(**veilConn); ok {
		*t = c
		return true
	}
	return c.CapableConn.As(target)
}

// DialledUnder reports whether a connection is ours to a bridge and was dialled under
// addr, which stands without /p2p/ID.
func DialledUnder(c network.Conn, addr ma.Multiaddr) bool {
	var v *veilConn
	return c.As(&v) && v.dialled.Equal(addr)
}

// prolonged is a context that ends when ctx is cancelled before its deadline, or at
// another time than that. What is cancelled later goes on: the swarm's own context,
// which would say so, is hidden behind the one with its deadline.
func prolonged(ctx context.Context, deadline time.Time) (context.Context, context.CancelFunc) {
	long, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			cancel()
		}
	})
	return long, func() { stop(); cancel() }
}

// CanDial reports whether addr is a bridge's.
func (t *veilTransport) CanDial(addr ma.Multiaddr) bool { return IsVeil(addr) }

// SkipResolve leaves names to the dialer: a proxy resolves them itself.
func (t *veilTransport) SkipResolve(_ context.Context, addr ma.Multiaddr) bool { return IsVeil(addr) }

// Listen starts the bridge; addr is what veilListenAddr makes.
func (t *veilTransport) Listen(addr ma.Multiaddr) (transport.Listener, error) {
	if t.bridge == nil || !addr.Equal(veilListenAddr(t.bridge.Listen)) {
		return nil, errors.New("a bridge listens where Config.Bridge says")
	}
	server, err := newVeilServer(*t.bridge)
	if err != nil {
		return nil, err
	}
	return t.upgrader.UpgradeGatedMaListener(t, t.upgrader.GateMaListener(server)), nil
}

// Protocols are the codes under which the swarm finds this transport.
func (t *veilTransport) Protocols() []int { return []int{ma.P_HTTP_PATH} }

// Proxy is false: a bridge is the peer, not a way to it.
func (t *veilTransport) Proxy() bool { return false }

// Close ends all streams that were dialled.
func (t *veilTransport) Close() error {
	t.dialer.close()
	return nil
}

func (t *veilTransport) String() string { return "veil" }

// OverVeil reports whether a connection goes through the veil.
func OverVeil(c network.ConnMultiaddrs) bool {
	return endsInTLS(c.RemoteMultiaddr())
}

func endsInTLS(a ma.Multiaddr) bool { return len(a) > 0 && a[len(a)-1].Protocol().Code == ma.P_TLS }

// veilListenAddr is the address by which the swarm starts a bridge's listener.
func veilListenAddr(a ma.Multiaddr) ma.Multiaddr { return a.Encapsulate(listening) }

// somewhere is where a client's connections to all bridges seem to lead, an
// address for documentation (RFC 5737). identify tells the other end of a
// connection where it comes from, and of one through a relay it tells that
// of the relay: whoever is met through a bridge would learn where it is.
var somewhere = ma.StringCast("/ip4/192.0.2.1/tcp/443/tls")

// Dialable is the address of a connection as it may be dialled again: of a relay
// that is a bridge, its name alone.
func Dialable(a ma.Multiaddr) ma.Multiaddr {
	at, rest := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_P2P })
	if at.Equal(somewhere) && rest != nil {
		return rest
	}
	return a
}

// veilEndpoint is where a client of ours is.
func veilEndpoint(ip netip.Addr, port uint16) (ma.Multiaddr, error) {
	family := 4
	if ip.Is6() {
		family = 6
	}
	return ma.NewMultiaddr(fmt.Sprintf("/ip%d/%s/tcp/%d/tls", family, ip, port))
}
