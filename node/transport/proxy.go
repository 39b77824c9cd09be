package transport

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

const (
	// maxConnectAnswer bounds the header of a proxy's answer to CONNECT.
	maxConnectAnswer = 64 << 10
	// proxyDialTimeout bounds a dial through a proxy, which may be the first
	// hop of several, as with Tor.
	proxyDialTimeout = 20 * time.Second
	// maxProxyWord is the longest user name, and password, of SOCKS5 (RFC 1929).
	maxProxyWord = 255
)

// Proxy opens TCP connections through an upstream proxy, which also resolves
// the names. Make one with ParseProxy or ProxyFromEnvironment. Its methods may be
// called from any goroutine.
type Proxy struct {
	at string // host:port of the proxy itself
	// through returns the dialler of one host:port, or nil if the proxy is not
	// for it.
	through func(address string) (DialFunc, error)

	mu    sync.Mutex
	fault ProxyFault // of the last dial
	works bool       // something came through
}

// ProxyFault is what is wrong with a proxy itself, whatever is dialled through it.
type ProxyFault uint8

// The faults.
const (
	ProxyFine        ProxyFault = iota // as far as is known
	ProxyUnreachable                   // nobody takes connections at its address
	ProxyLocked                        // it wants a user name and a password, or others
	ProxyForeign                       // what is there is no proxy of this kind
	ProxyForbids                       // it refuses us, and not for where we want to go
)

// proxyCheckTime bounds the connection by which Check sees that a proxy is there.
const proxyCheckTime = 3 * time.Second

// Address returns the proxy's own host:port, without what is secret in its URL.
func (p *Proxy) Address() string { return p.at }

// Check says what is wrong with the proxy: it connects to it, as every dial does,
// and recalls what it answered last. A proxy that let something through in this
// run is one, and what it refuses then is a matter of the destination.
func (p *Proxy) Check(ctx context.Context) ProxyFault {
	ctx, cancel := context.WithTimeout(ctx, proxyCheckTime)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", p.at)
	if err != nil {
		return ProxyUnreachable
	}
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault == ProxyUnreachable || p.works && p.fault != ProxyLocked {
		return ProxyFine
	}
	return p.fault
}

// noting has dial, which goes through the proxy, leave behind what it said of it.
func (p *Proxy) noting(dial DialFunc) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil && ctx.Err() != nil {
			return nil, err // it was we who gave up: the destination may be slow
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.fault = proxyFaultOf(err)
		p.works = p.works || err == nil
		return c, err
	}
}

// socksOp is what the library calls a failure of its own, which may be about
// nothing but what a SOCKS5 server said.
const socksOp = "socks connect"

// What the library says of answers of SOCKS5 servers (RFC 1928 and 1929), for which
// it has no types. TestProxyCheck holds it to them.
const (
	socksNoMethod = "no acceptable authentication methods"
	socksPassword = "username/password authentication failed"
	socksAnswer   = "unknown error " // then what the server answered
	socksForbids  = socksAnswer + "connection not allowed by ruleset"
)

// proxyFaultOf says whether a dial failed by the proxy. Where it was to lead stands
// around the library's words, never in them: a name may be made of any of them.
func proxyFaultOf(err error) ProxyFault {
	var status *proxyStatusError
	var socks *net.OpError
	switch {
	case err == nil:
		return ProxyFine
	case errors.As(err, new(*proxyGoneError)):
		return ProxyUnreachable
	case errors.As(err, &status):
		switch {
		case status.code == http.StatusProxyAuthRequired:
			return ProxyLocked
		case status.code/100 == 4:
			return ProxyForbids
		}
		return ProxyFine // it could not reach the destination
	case errors.As(err, &socks) && socks.Op == socksOp && socks.Err != nil:
		switch said := socks.Err.Error(); {
		case said == socksNoMethod, said == socksPassword:
			return ProxyLocked
		case said == socksForbids:
			return ProxyForbids
		case strings.HasPrefix(said, socksAnswer):
			return ProxyFine
		}
	}
	return ProxyForeign
}

// proxyGoneError is a failure to connect to the proxy itself.
type proxyGoneError struct{ err error }

func (e *proxyGoneError) Error() string { return "the proxy can not be reached: " + e.err.Error() }
func (e *proxyGoneError) Unwrap() error { return e.err }

// proxyStatusError is an HTTP proxy's refusal.
type proxyStatusError struct{ code int }

func (e *proxyStatusError) Error() string {
	return fmt.Sprintf("the proxy refused with status %d", e.code)
}

// toProxy dials the proxy itself.
type toProxy struct{}

// Dial is there for the sake of proxy.Dialer.
func (toProxy) Dial(network, address string) (net.Conn, error) {
	return toProxy{}.DialContext(context.Background(), network, address)
}

// DialContext marks a failure as the proxy's.
func (toProxy) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, &proxyGoneError{err}
	}
	return c, nil
}

// Within returns what opens TCP connections to a host:port, whose host may be a
// name. The proxy answers for what the names lead to that it resolves. Those that
// it is not asked for, as NO_PROXY says, are resolved here, and lead to addresses
// in reach alone; addresses as such are for the gater to judge.
func (p *Proxy) Within(reach Reach) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		dial, err := p.through(address)
		if err != nil {
			return nil, err
		}
		if dial == nil {
			dial = new(net.Dialer).DialContext
			if _, err := netip.ParseAddrPort(address); err != nil {
				dial = reachDialer(reach).DialContext
			}
		}
		return dial(ctx, network, address)
	}
}

// reachDialer dials no address outside reach: a name may hide what an address
// could not (threats E10).
func reachDialer(reach Reach) *net.Dialer {
	return &net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || reachOf(at.Addr())&reach == 0 {
			return errors.New("the name leads to an address that isn't dialled")
		}
		return nil
	}}
}

// ParseProxy reads the URL of a proxy: socks5://HOST:PORT (RFC 1928; socks5h is
// the same) or http://HOST:PORT (CONNECT, RFC 9110, section 9.3.6), with
// USER:PASSWORD@ before the host if it wants them. Everything goes through it.
// The error is a sentence that repeats nothing of the URL, which may hold a password.
func ParseProxy(raw string) (*Proxy, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("the proxy is no URL")
	}
	dial, err := proxyDialer(u)
	if err != nil {
		return nil, err
	}
	p := &Proxy{at: u.Host}
	dial = p.noting(dial)
	p.through = func(string) (DialFunc, error) { return dial, nil }
	return p, nil
}

// ProxyFromEnvironment returns the proxy that HTTPS_PROXY, or else ALL_PROXY,
// names, in capitals or not, or nil if neither does. It spares the hosts of
// NO_PROXY and this machine, as every program does that reads these variables.
// HTTP_PROXY concerns unencrypted requests, of which there are none.
func ProxyFromEnvironment(getenv func(string) string) (*Proxy, error) {
	first := func(names ...string) string {
		for _, name := range names {
			if v := getenv(name); v != "" {
				return v
			}
		}
		return ""
	}
	raw := first("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
	if raw == "" {
		return nil, nil
	}
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw // as curl reads it
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("the proxy is no URL")
	}
	dial, err := proxyDialer(u)
	if err != nil {
		return nil, err
	}
	rules := httpproxy.Config{HTTPSProxy: raw, NoProxy: first("NO_PROXY", "no_proxy")}
	choose := rules.ProxyFunc()
	p := &Proxy{at: u.Host}
	dial = p.noting(dial)
	p.through = func(address string) (DialFunc, error) {
		chosen, err := choose(&url.URL{Scheme: "https", Host: address})
		switch {
		case err != nil:
			return nil, errors.New("the proxy can not be chosen")
		case chosen == nil:
			return nil, nil
		}
		return dial, nil
	}
	return p, nil
}

// proxyDialer checks the URL of a proxy and returns what dials through it.
func proxyDialer(u *url.URL) (DialFunc, error) {
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil || host == "" {
		return nil, errors.New("the proxy's URL has no host with a port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, errors.New("the proxy's port is not between 1 and 65535")
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the proxy's URL goes on after its port")
	}
	user := u.User.Username()
	password, _ := u.User.Password()
	if len(user) > maxProxyWord || len(password) > maxProxyWord || u.User != nil && user == "" {
		return nil, fmt.Errorf("the proxy's user name or password is empty or longer than %d bytes", maxProxyWord)
	}
	switch u.Scheme {
	case "socks5", "socks5h":
		var auth *proxy.Auth
		if u.User != nil {
			auth = &proxy.Auth{User: user, Password: password}
		}
		d, err := proxy.SOCKS5("tcp", u.Host, auth, toProxy{})
		if err != nil {
			return nil, err
		}
		return d.(proxy.ContextDialer).DialContext, nil
	case "http":
		authorization := ""
		if u.User != nil {
			authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
		}
		return connectDialer(u.Host, authorization), nil
	}
	return nil, errors.New("the proxy is neither socks5:// nor http://")
}

// connectDialer dials by CONNECT (RFC 9110, section 9.3.6). The request says
// nothing about who makes it.
func connectDialer(via, authorization string) DialFunc {
	return func(ctx context.Context, _, address string) (_ net.Conn, err error) {
		conn, err := toProxy{}.DialContext(ctx, "tcp", via)
		if err != nil {
			return nil, err
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer func() {
			if !stop() && err == nil {
				err = ctx.Err()
			}
			if err != nil {
				conn.Close()
			}
		}()
		request := "CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n"
		if authorization != "" {
			request += "Proxy-Authorization: " + authorization + "\r\n"
		}
		if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
			return nil, err
		}
		header := &io.LimitedReader{R: conn, N: maxConnectAnswer}
		r := bufio.NewReader(header)
		answer, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
		if err != nil {
			return nil, fmt.Errorf("the proxy's answer: %w", err)
		}
		if answer.StatusCode/100 != 2 {
			answer.Body.Close()
			return nil, &proxyStatusError{answer.StatusCode}
		}
		header.N = math.MaxInt64
		return &readConn{conn, r}, nil
	}
}

// readConn is a connection of which a reader has read on already.
type readConn struct {
	net.Conn
	r io.Reader
}

// Read reads what the reader holds, and then the connection.
func (c *readConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// proxiedTCP is TCP whose every dial goes through a DialFunc, names included.
type proxiedTCP struct {
	*tcp.TcpTransport
	upgrader  transport.Upgrader
	resources network.ResourceManager
	dial      DialFunc
}

var (
	_ transport.Transport    = (*proxiedTCP)(nil)
	_ transport.DialUpdater  = (*proxiedTCP)(nil)
	_ transport.SkipResolver = (*proxiedTCP)(nil)
)

// CanDial reports whether addr is TCP at an IP address or a name, and nothing on
// top of it.
func (t *proxiedTCP) CanDial(addr ma.Multiaddr) bool {
	return t.TcpTransport.CanDial(addr) ||
		len(addr) == 2 && named(addr) && addr[1].Protocol().Code == ma.P_TCP
}

// SkipResolve leaves names to the proxy: asking for them here would tell the
// local network whom we talk to.
func (t *proxiedTCP) SkipResolve(context.Context, ma.Multiaddr) bool { return true }

// Dial connects to the peer through the proxy.
func (t *proxiedTCP) Dial(ctx context.Context, raddr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.DialWithUpdates(ctx, raddr, p, nil)
}

// DialWithUpdates is Dial; updates about the TCP handshake would be about the proxy's.
func (t *proxiedTCP) DialWithUpdates(ctx context.Context, raddr ma.Multiaddr, p peer.ID, _ chan<- transport.DialUpdate) (_ transport.CapableConn, err error) {
	scope, err := t.resources.OpenConnection(network.DirOutbound, true, raddr)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			scope.Done()
		}
	}()
	if err := scope.SetPeer(p); err != nil {
		return nil, err
	}
	c, err := dialMultiaddr(ctx, t.dial, raddr)
	if err != nil {
		return nil, err
	}
	return t.upgrader.Upgrade(ctx, t, c, network.DirOutbound, p, scope)
}

// dialMultiaddr dials TCP at an IP address or a name. The connection's far end is
// raddr, not the proxy.
func dialMultiaddr(ctx context.Context, dial DialFunc, raddr ma.Multiaddr) (manet.Conn, error) {
	address, err := hostPort(raddr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, proxyDialTimeout)
	defer cancel()
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	laddr, err := manet.FromNetAddr(conn.LocalAddr())
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &proxiedConn{Conn: conn, local: laddr, remote: raddr}, nil
}

// hostPort returns the host:port at the head of a multiaddr.
func hostPort(a ma.Multiaddr) (string, error) {
	var host, port string
	ma.ForEach(a, func(c ma.Component) bool {
		switch c.Protocol().Code {
		case ma.P_IP4, ma.P_IP6, ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
			host = c.Value()
		case ma.P_IP6ZONE:
			return true
		case ma.P_TCP:
			port = c.Value()
			return false
		default:
			return false
		}
		return true
	})
	if host == "" || port == "" {
		return "", errors.New("not TCP at an address or a name")
	}
	return net.JoinHostPort(host, port), nil
}

// proxiedConn is a connection through a proxy, under the address it leads to.
type proxiedConn struct {
	net.Conn
	local, remote ma.Multiaddr
}

var _ manet.Conn = (*proxiedConn)(nil)

// LocalMultiaddr returns our end of the connection to the proxy.
func (c *proxiedConn) LocalMultiaddr() ma.Multiaddr { return c.local }

// RemoteMultiaddr returns the address that was dialled.
func (c *proxiedConn) RemoteMultiaddr() ma.Multiaddr { return c.remote }

// RemoteAddr returns the address that was dialled, if it is no name.
func (c *proxiedConn) RemoteAddr() net.Addr {
	if a, err := manet.ToNetAddr(c.remote); err == nil {
		return a
	}
	return c.Conn.RemoteAddr()
}

// noNames resolves nothing, for a host that leaves names to its proxy.
type noNames struct{}

var errNoNames = errors.New("names are left to the proxy")

// ResolveDNSAddr refuses /dnsaddr, which a proxy can not resolve.
func (noNames) ResolveDNSAddr(context.Context, peer.ID, ma.Multiaddr, int, int) ([]ma.Multiaddr, error) {
	return nil, errNoNames
}

// ResolveDNSComponent refuses names of transports that do not go through the proxy.
func (noNames) ResolveDNSComponent(context.Context, ma.Multiaddr, int) ([]ma.Multiaddr, error) {
	return nil, errNoNames
}

// named reports whether an address begins with a name.
func named(a ma.Multiaddr) bool {
	if len(a) == 0 {
		return false
	}
	switch a[0].Protocol().Code {
	case ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
		_, err := netip.ParseAddr(a[0].Value())
		return err != nil // an IP address in a name's clothes has no class
	}
	return false
}
