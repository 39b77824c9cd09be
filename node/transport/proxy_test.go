package transport_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/transport"
)

// testProxy is a SOCKS5 and HTTP proxy on loopback that knows one name.
type testProxy struct {
	t    testing.TB
	addr string
	user string // "user:password"; empty: anybody
	name string // resolves to this machine

	mu    sync.Mutex
	asked []string // what it was asked to connect to
}

func newProxy(t testing.TB, user, name string) *testProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &testProxy{t: t, addr: ln.Addr().String(), user: user, name: name}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		ln.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.serve(ctx, conn) })
		}
	})
	return p
}

func (p *testProxy) url(scheme string) string {
	if p.user == "" {
		return scheme + "://" + p.addr
	}
	return scheme + "://" + p.user + "@" + p.addr
}

func (p *testProxy) serve(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	r := bufio.NewReader(conn)
	first, err := r.Peek(1)
	if err != nil {
		return
	}
	var target string
	if first[0] == 5 {
		target = p.socks(r, conn)
	} else {
		target = p.connect(r, conn)
	}
	if target == "" {
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, target)
	p.mu.Unlock()
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		p.t.Errorf("asked for %q", target)
		return
	}
	if host == p.name {
		host = "127.0.0.1"
	}
	out, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { out.Close() })()
	defer out.Close()
	if first[0] == 5 {
		_, err = conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	} else {
		_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\nX-Proxy: yes\r\n\r\n")
	}
	if err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, r)
		out.Close()
	}()
	_, _ = io.Copy(conn, out)
	conn.Close()
	<-done
}

// socks is the server's side of RFC 1928 and 1929 up to the request.
func (p *testProxy) socks(r *bufio.Reader, w io.Writer) string {
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil {
		return ""
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(r, methods); err != nil {
		return ""
	}
	method := byte(0)
	if p.user != "" {
		method = 2
	}
	if !slices.Contains(methods, method) {
		_, _ = w.Write([]byte{5, 0xff})
		return ""
	}
	if _, err := w.Write([]byte{5, method}); err != nil {
		return ""
	}
	word := func() string {
		n, err := r.ReadByte()
		b := make([]byte, n)
		if err != nil {
			return ""
		}
		_, _ = io.ReadFull(r, b)
		return string(b)
	}
	if p.user != "" {
		_, _ = r.ReadByte()
		if got := word() + ":" + word(); got != p.user {
			_, _ = w.Write([]byte{1, 1})
			return ""
		}
		if _, err := w.Write([]byte{1, 0}); err != nil {
			return ""
		}
	}
	request := make([]byte, 4)
	if _, err := io.ReadFull(r, request); err != nil {
		return ""
	}
	var host string
	switch request[3] {
	case 1:
		b := make([]byte, 4)
		_, _ = io.ReadFull(r, b)
		host = net.IP(b).String()
	case 3:
		host = word()
	default:
		p.t.Errorf("an address of type %d", request[3])
		return ""
	}
	port := make([]byte, 2)
	if _, err := io.ReadFull(r, port); err != nil {
		return ""
	}
	return net.JoinHostPort(host, itoa(binary.BigEndian.Uint16(port)))
}

func (p *testProxy) connect(r *bufio.Reader, w io.Writer) string {
	req, err := http.ReadRequest(r)
	if err != nil || req.Method != http.MethodConnect {
		p.t.Errorf("no CONNECT: %v", err)
		return ""
	}
	if _, ok := req.Header["User-Agent"]; ok {
		p.t.Error("the request names its program")
	}
	req.Header.Set("Authorization", req.Header.Get("Proxy-Authorization"))
	user, password, _ := req.BasicAuth()
	if p.user != "" && user+":"+password != p.user {
		_, _ = io.WriteString(w, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		return ""
	}
	return req.Host
}

func (p *testProxy) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

func itoa(n uint16) string {
	_, port, _ := net.SplitHostPort((&net.TCPAddr{Port: int(n)}).String())
	return port
}

// TestProxy_NothingGoesPast reaches a peer by a name that only the proxy knows,
// with a QUIC address beside it that must not be tried.
func TestProxy_NothingGoesPast(t *testing.T) {
	for _, c := range []struct{ name, scheme, user string }{
		{"socks5", "socks5", ""},
		{"socks5h with a password", "socks5h", "ann:secret"},
		{"http", "http", ""},
		{"http with a password", "http", "ann:secret"},
	} {
		t.Run(c.name, func(t *testing.T) {
			const name = "node.kith-test.invalid"
			far := realHost(t, transport.Community, tcpLoopback, quicLoopback)
			p := newProxy(t, c.user, name)
			through, err := transport.ParseProxy(p.url(c.scheme))
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var dialled []string
			near := proxiedHost(t, func(ctx context.Context, network, address string) (net.Conn, error) {
				mu.Lock()
				dialled = append(dialled, network+" "+address)
				mu.Unlock()
				return through.Within(transport.Loopback)(ctx, network, address)
			})

			var port string
			var addrs []ma.Multiaddr
			for _, a := range far.Network().ListenAddresses() {
				if v, err := a.ValueForProtocol(ma.P_TCP); err == nil {
					port = v
					addrs = append(addrs, ma.StringCast("/dns4/"+name+"/tcp/"+v))
				} else {
					quic := ma.StringCast("/dns4/" + name).Encapsulate(a[1:])
					addrs = append(addrs, a, quic, ma.StringCast("/dnsaddr/"+name))
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := near.Connect(ctx, peer.AddrInfo{ID: far.ID(), Addrs: addrs}); err != nil {
				t.Fatal(err)
			}
			conns := near.Network().ConnsToPeer(far.ID())
			if len(conns) != 1 {
				t.Fatalf("%d connections, want 1", len(conns))
			}
			if got, want := conns[0].RemoteMultiaddr().String(), "/dns4/"+name+"/tcp/"+port; got != want {
				t.Errorf("the far end is %s, want %s", got, want)
			}
			want := []string{net.JoinHostPort(name, port)}
			if got := p.requests(); !slices.Equal(got, want) {
				t.Errorf("the proxy was asked for %q, want %q", got, want)
			}
			mu.Lock()
			defer mu.Unlock()
			if want := []string{"tcp " + net.JoinHostPort(name, port)}; !slices.Equal(dialled, want) {
				t.Errorf("dialled were %q, want %q", dialled, want)
			}
		})
	}
}

// proxiedHost makes a host without listeners whose dials go through dial.
func proxiedHost(t testing.TB, dial transport.DialFunc) *transport.Host {
	t.Helper()
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := transport.New(transport.Config{
		Key: key, Role: transport.Errands, Memory: transport.MinMemory, Dial: transport.Public | transport.Loopback, DialTCP: dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// TestProxyReach: an address that this host may not dial is not dialled through
// the proxy either, nor an address that is dressed as a name.
func TestProxyReach(t *testing.T) {
	near := proxiedHost(t, func(context.Context, string, string) (net.Conn, error) {
		t.Error("dialled")
		return nil, errors.New("no")
	})
	far := realHost(t, transport.Community, tcpLoopback)
	for _, a := range []string{"/ip4/10.0.0.1/tcp/4040", "/dns4/10.0.0.1/tcp/4040", "/dns4/a.example/udp/4040/quic-v1", "/dnsaddr/a.example"} {
		near.Peerstore().ClearAddrs(far.ID())
		near.Peerstore().AddAddr(far.ID(), ma.StringCast(a), peerstore.TempAddrTTL)
		if err := near.Connect(t.Context(), peer.AddrInfo{ID: far.ID()}); err == nil {
			t.Errorf("%s: connected", a)
		}
	}
}

// TestE10_NamesPastTheProxy: the environment says which names the proxy is not
// asked for, and this machine is always among them. They are resolved here, and one
// that leads to this machine is dialled by nobody who only knows the Internet: not
// for a stock address, not for a bridge's, and not to probe one.
func TestE10_NamesPastTheProxy(t *testing.T) {
	here, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	_, port, _ := net.SplitHostPort(here.Addr().String())
	env := map[string]string{"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "localhost"}
	through, err := transport.ProxyFromEnvironment(func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	bridge := "/dns4/localhost/tcp/" + port + "/tls/http-path/AAAAAAAAAAAAAAAAAAAAAA"
	connect := func(address string) func(transport.Reach) {
		return func(reach transport.Reach) {
			h := proxiedHost(t, through.Within(reach))
			id := far(t)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_ = h.Connect(ctx, peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast(address)}})
		}
	}
	probe := func(p func(transport.Reach) transport.Prober) func(transport.Reach) {
		return func(reach transport.Reach) {
			v, err := transport.ParseVeil(ma.StringCast(bridge))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			p(reach).Bridge(ctx, v, func(context.Context) error {
				t.Error("a bridge is asked for where no web site answers")
				return nil
			})
		}
	}
	for name, dial := range map[string]func(transport.Reach){
		"stock":                 connect("/dns4/localhost/tcp/" + port),
		"bridge":                connect(bridge),
		"probe":                 probe(func(r transport.Reach) transport.Prober { return transport.Prober{DialTCP: through.Within(r)} }),
		"probe without a proxy": probe(func(r transport.Reach) transport.Prober { return transport.Prober{Dial: r} }),
	} {
		t.Run(name, func(t *testing.T) {
			// dialled says whether somebody is in the listener's queue before us.
			dialled := func() bool {
				own, err := net.Dial("tcp", here.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer own.Close()
				for others := false; ; others = true {
					c, err := here.Accept()
					if err != nil {
						t.Fatal(err)
					}
					c.Close()
					if c.RemoteAddr().String() == own.LocalAddr().String() {
						return others
					}
				}
			}
			if dial(transport.Public); dialled() {
				t.Error("a name led to this machine")
			}
			if dial(transport.Loopback); !dialled() {
				t.Error("this machine was not dialled by who may dial it")
			}
		})
	}
}

// far is a peer that is nowhere.
func far(t testing.TB) peer.ID {
	t.Helper()
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestParseProxy(t *testing.T) {
	for _, good := range []string{
		"socks5://127.0.0.1:9050", "socks5h://proxy.example:1080/", "socks5://u:p@[::1]:1080",
		"http://proxy.example:3128", "http://u@proxy.example:3128",
	} {
		if _, err := transport.ParseProxy(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	long := strings.Repeat("x", 256)
	for _, bad := range []string{
		"", "127.0.0.1:9050", "socks5://", "socks5://secret", "socks5://secret:0", "socks5://secret:70000", "socks5://:1080",
		"socks4://secret:1080", "https://secret:443", "http://secret:3128/path", "http://secret:3128?x", "socks5://:secret@h:1",
		"socks5://u:" + long + "@h:1", "socks5://" + long + ":secret@h:1", "http://secret\x00:1",
	} {
		_, err := transport.ParseProxy(bad)
		if err == nil {
			t.Errorf("%q is taken", bad)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error repeats it: %v", bad, err)
		}
	}
}

func TestProxyFromEnvironment(t *testing.T) {
	direct, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	p := newProxy(t, "", "far.example")
	_, port, _ := net.SplitHostPort(direct.Addr().String())
	via := net.JoinHostPort("far.example", port)
	for _, c := range []struct {
		name    string
		env     map[string]string
		address string
		proxied bool
	}{
		{"https", map[string]string{"HTTPS_PROXY": p.url("http")}, via, true},
		{"lower case", map[string]string{"https_proxy": p.url("socks5")}, via, true},
		{"without a scheme", map[string]string{"HTTPS_PROXY": p.addr}, via, true},
		{"all", map[string]string{"ALL_PROXY": p.url("socks5h")}, via, true},
		{"the more special one first", map[string]string{"ALL_PROXY": "socks5://127.0.0.1:1", "HTTPS_PROXY": p.url("http")}, via, true},
		{"excepted", map[string]string{"ALL_PROXY": "socks5://127.0.0.1:1", "NO_PROXY": "10.0.0.0/8,127.0.0.0/8"}, direct.Addr().String(), false},
		{"this machine", map[string]string{"all_proxy": "socks5://127.0.0.1:1"}, direct.Addr().String(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			through, err := transport.ProxyFromEnvironment(func(name string) string { return c.env[name] })
			if err != nil {
				t.Fatal(err)
			}
			before := len(p.requests())
			conn, err := through.Within(transport.Loopback)(t.Context(), "tcp", c.address)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if got := len(p.requests()) > before; got != c.proxied {
				t.Errorf("through the proxy: %v, want %v", got, c.proxied)
			}
		})
	}
	if through, err := transport.ProxyFromEnvironment(func(name string) string { return map[string]string{"HTTP_PROXY": "http://h:1"}[name] }); through != nil || err != nil {
		t.Errorf("HTTP_PROXY alone gives %v, %v", through, err)
	}
	if _, err := transport.ProxyFromEnvironment(func(string) string { return "ftp://secret:1" }); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a proxy that is none: %v", err)
	}
}

// TestProxyAnswers dials through HTTP proxies that do not do what they should.
func TestProxyAnswers(t *testing.T) {
	for _, c := range []struct {
		name, answer string
	}{
		{"refusal", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"},
		{"something else", "SSH-2.0-OpenSSH_9.2\r\n"},
		{"a header without end", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 128<<10)},
		{"nothing", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			served := make(chan struct{})
			go func() {
				defer close(served)
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, c.answer)
				_, _ = io.Copy(io.Discard, conn)
			}()
			through, err := transport.ParseProxy("http://" + ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			limit := 5 * time.Second
			if c.answer == "" {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			if conn, err := through.Within(transport.Loopback)(ctx, "tcp", "far.example:443"); err == nil {
				conn.Close()
				t.Error("connected")
			}
			<-served
		})
	}
	// What the far end says at once comes in the proxy's own packet.
	p, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go func() {
		conn, err := p.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nhello")
		_, _ = io.Copy(io.Discard, conn)
	}()
	through, err := transport.ParseProxy("http://" + p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := through.Within(transport.Loopback)(t.Context(), "tcp", "far.example:443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := make([]byte, 5)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
}

// TestProxyCheck: what is the proxy's own fault is told from what is the
// destination's, and one that lets something through is in order.
func TestProxyCheck(t *testing.T) {
	const socksOpen, socksLocked = "\x05\x00", "\x05\x02"
	reply := func(code string) string { return socksOpen + "\x05" + code + "\x00\x01\x00\x00\x00\x00\x00\x00" }
	for _, c := range []struct {
		name, scheme string
		answers      []string // to one dial each
		want         transport.ProxyFault
		to           string // what is dialled; empty: far.example
	}{
		{"nothing was dialled", "http", nil, transport.ProxyFine, ""},
		{"HTTP lets through", "http", []string{"HTTP/1.1 200 OK\r\n\r\n"}, transport.ProxyFine, ""},
		{"HTTP does not reach it", "http", []string{"HTTP/1.1 502 Bad Gateway\r\n\r\n"}, transport.ProxyFine, ""},
		{"HTTP wants a password", "http", []string{"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"}, transport.ProxyLocked, ""},
		{"HTTP forbids", "http", []string{"HTTP/1.1 403 Forbidden\r\n\r\n"}, transport.ProxyForbids, ""},
		{"HTTP forbids some", "http", []string{"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n\r\n"}, transport.ProxyFine, ""},
		{"HTTP wants a password by now", "http", []string{"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"}, transport.ProxyLocked, ""},
		{"SSH", "http", []string{"SSH-2.0-OpenSSH_9.2\r\n"}, transport.ProxyForeign, ""},
		{"SOCKS lets through", "socks5", []string{reply("\x00")}, transport.ProxyFine, ""},
		{"SOCKS does not reach it", "socks5", []string{reply("\x04")}, transport.ProxyFine, ""},
		{"SOCKS fails somehow", "socks5", []string{reply("\x01")}, transport.ProxyFine, ""},
		{"SOCKS forbids", "socks5", []string{reply("\x02")}, transport.ProxyForbids, ""},
		{"SOCKS wants a password", "socks5", []string{"\x05\xff"}, transport.ProxyLocked, ""},
		{"SOCKS wants another password", "socks5://ann:secret", []string{socksLocked + "\x01\x01"}, transport.ProxyLocked, ""},
		{"HTTP instead of SOCKS", "socks5", []string{"HTTP/1.1 400 Bad Request\r\n\r\n"}, transport.ProxyForeign, ""},
		// A name may say anything, and is not what the proxy says.
		{"SOCKS does not reach a name like a fault", "socks5", []string{reply("\x04")}, transport.ProxyFine, "authentication.example"},
		{"SOCKS forbids a name like a fault", "socks5", []string{reply("\x02")}, transport.ProxyForbids, "authentication.example"},
		{"HTTP with words of SOCKS", "http", []string{"HTTP/1.1 authentication\r\n\r\n"}, transport.ProxyForeign, ""},
		{"not SOCKS, and a name like an answer", "socks5", []string{"HTTP/1.1 400 Bad Request\r\n\r\n"}, transport.ProxyForeign, "unknown error "},
	} {
		t.Run(c.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			raw := c.scheme + "://" + ln.Addr().String()
			if strings.Contains(c.scheme, "://") { // with a user
				raw = c.scheme + "@" + ln.Addr().String()
			}
			p, err := transport.ParseProxy(raw)
			if err != nil {
				t.Fatal(err)
			}
			for _, answer := range c.answers {
				served := make(chan struct{})
				go func() {
					defer close(served)
					conn, err := ln.Accept()
					if err != nil {
						return
					}
					defer conn.Close()
					_, _ = conn.Read(make([]byte, 1024)) // or what is unread resets it
					_, _ = io.WriteString(conn, answer)
					_, _ = io.Copy(io.Discard, conn)
				}()
				if conn, err := p.Within(transport.Public)(t.Context(), "tcp", cmp.Or(c.to, "far.example")+":443"); err == nil {
					conn.Close()
				}
				<-served
			}
			if got := p.Check(t.Context()); got != c.want {
				t.Errorf("the fault is %d, want %d", got, c.want)
			}
			if p.Address() != ln.Addr().String() {
				t.Errorf("its address is %q", p.Address())
			}
			ln.Close()
			if got := p.Check(t.Context()); got != transport.ProxyUnreachable {
				t.Errorf("once it is gone the fault is %d", got)
			}
		})
	}
}
