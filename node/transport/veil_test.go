package transport

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
)

const testPath = "AAECAwQFBgcICQoLDA0ODw"

// selfSigned makes a certificate for a name.
func selfSigned(t testing.TB, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// testSite is somebody's web site.
type testSite struct {
	mu   sync.Mutex
	seen []string // method and path of every request that reached it
}

func (s *testSite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, r.Method+" "+r.URL.Path)
	s.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Server", "nginx")
	w.Header().Set("X-Body", http.StatusText(200+len(body)%2))
	if r.URL.Path != "/" {
		http.Error(w, "no such page", http.StatusNotFound)
		return
	}
	io.WriteString(w, "<h1>cats</h1>")
}

func (s *testSite) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen...)
}

// testBridge is a bridge without libp2p in it: its streams come from Accept.
type testBridge struct {
	*veilServer
	site *testSite
	addr VeilAddr
}

func newTestBridge(t testing.TB, change ...func(*Bridge)) *testBridge {
	t.Helper()
	cert := selfSigned(t, "cats.example")
	site := new(testSite)
	cfg := Bridge{
		Listen:      ma.StringCast("/ip4/127.0.0.1/tcp/0"),
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil },
		Path:        func(path string) bool { return path == testPath },
		Site:        site,
	}
	for _, f := range change {
		f(&cfg)
	}
	s, err := newVeilServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	pin := PinOf(cert.Certificate[0])
	return &testBridge{s, site, VeilAddr{
		Host: "127.0.0.1", Family: 4, Port: uint16(s.Addr().(*net.TCPAddr).Port), SNI: "cats.example", Pin: &pin, Path: testPath,
	}}
}

// echo sends back what it gets, until the end.
func (b *testBridge) echo() {
	for {
		c, err := b.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

// dialTest opens a stream through a TCP dialer of the test's; nil is the usual one.
func dialTest(t testing.TB, b *testBridge, client VeilClient) *veilCaller {
	t.Helper()
	d := newVeilDialer(client, Loopback)
	t.Cleanup(d.close)
	c, err := d.dial(t.Context(), b.addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// echoed writes what and wants it back.
func echoed(t testing.TB, c net.Conn, what []byte) {
	t.Helper()
	errs := make(chan error, 1)
	go func() {
		_, err := c.Write(what)
		errs <- err
	}()
	got := make([]byte, len(what))
	if n, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("after %d of %d bytes: %v", n, len(what), err)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, what) {
		t.Fatal("other bytes came back")
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// TestVeilStream carries bytes over real TLS and HTTP/2, each of several sizes.
func TestVeilStream(t *testing.T) {
	b := newTestBridge(t)
	go b.echo()
	c := dialTest(t, b, VeilClient{})
	for _, n := range []int{1, 100, 5000, 1 << 20, 5 << 20} {
		start := time.Now()
		echoed(t, c, randomBytes(n))
		t.Logf("%d bytes there and back in %v", n, time.Since(start))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	<-c.done
	if seen := b.site.requests(); len(seen) != 0 {
		t.Errorf("the site saw %v", seen)
	}
}

// TestVeilFirstAnswer: what the server says to the first bytes comes with the first
// answer, and not a round trip later.
func TestVeilFirstAnswer(t *testing.T) {
	b := newTestBridge(t)
	go b.echo()
	c := dialTest(t, b, VeilClient{})
	defer c.Close()
	echoed(t, c, []byte("first bytes"))
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.links[0].served; n != 1 {
		t.Errorf("it took %d exchanges", n)
	}
}

// veiled is a bridge on a port of the system's choice, whose only path is testPath.
func veiled(cert *tls.Certificate) *Bridge {
	return &Bridge{
		Listen:      ma.StringCast("/ip4/127.0.0.1/tcp/0"),
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil },
		Path:        func(path string) bool { return path == testPath },
		Site:        new(testSite),
	}
}

// veilAt is the address of a host's bridge.
func veilAt(t testing.TB, bridge *Host, cert *tls.Certificate) ma.Multiaddr {
	t.Helper()
	port, err := bridge.BridgeAddr().ValueForProtocol(ma.P_TCP)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	pin := PinOf(cert.Certificate[0])
	addr, err := VeilAddr{Host: "127.0.0.1", Family: 4, Port: uint16(n), Pin: &pin, Path: testPath}.Multiaddr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// TestVeilHosts connects two whole hosts.
func TestVeilHosts(t *testing.T) {
	cert := selfSigned(t, "cats.example")
	key, _ := NewKey(rand.Reader)
	bridge, err := New(Config{
		Key: key, Role: Community, Memory: MinMemory, Dial: Loopback,
		Bridge: veiled(cert),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer bridge.Close()
	bridge.SetStreamHandler("/echo", func(s network.Stream) {
		io.Copy(s, s)
		s.Close()
	})
	addr := veilAt(t, bridge, cert)
	key, _ = NewKey(rand.Reader)
	client, err := New(Config{Key: key, Role: Errands, Memory: MinMemory, Dial: Loopback})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	start := time.Now()
	if err := client.Connect(t.Context(), peer.AddrInfo{ID: bridge.ID(), Addrs: []ma.Multiaddr{addr}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("connected in %v", time.Since(start))
	s, err := client.NewStream(t.Context(), bridge.ID(), "/echo")
	if err != nil {
		t.Fatal(err)
	}
	what := randomBytes(1 << 20)
	go func() {
		s.Write(what)
		s.CloseWrite()
	}()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, what) {
		t.Fatalf("%d bytes came back, %v", len(got), err)
	}

	conn := client.Network().ConnsToPeer(bridge.ID())[0]
	if !OverVeil(conn) || !conn.RemoteMultiaddr().Equal(somewhere) { // whom identify tells it, it tells nothing
		t.Errorf("the connection goes to %v", conn.RemoteMultiaddr())
	}
	if there := bridge.Network().ConnsToPeer(client.ID())[0]; !OverVeil(there) {
		t.Errorf("the connection comes from %v", there.RemoteMultiaddr())
	}
	for _, a := range bridge.Addrs() {
		t.Errorf("the bridge publishes %v", a)
	}
}

// lateConn is a connection of which every write arrives late.
type lateConn struct {
	net.Conn
	late   time.Duration
	out    chan lateWrite
	closed chan struct{}
	close  sync.Once
}

type lateWrite struct {
	due  time.Time
	data []byte
}

func newLateConn(c net.Conn, late time.Duration) *lateConn {
	l := &lateConn{Conn: c, late: late, out: make(chan lateWrite, 1<<10), closed: make(chan struct{})}
	go func() {
		for {
			select {
			case w := <-l.out:
				time.Sleep(time.Until(w.due))
				if _, err := c.Write(w.data); err != nil {
					l.Close()
				}
			case <-l.closed:
				return
			}
		}
	}()
	return l
}

func (l *lateConn) Write(p []byte) (int, error) {
	select {
	case l.out <- lateWrite{time.Now().Add(l.late), slices.Clone(p)}:
		return len(p), nil
	case <-l.closed:
		return 0, net.ErrClosed
	}
}

func (l *lateConn) Close() error {
	l.close.Do(func() { close(l.closed) })
	return l.Conn.Close()
}

// loopbackHost is a whole host on this machine alone.
func loopbackHost(t *testing.T, cfg Config) *Host {
	t.Helper()
	cfg.Key, _ = NewKey(rand.Reader)
	cfg.Dial = Loopback
	cfg.Memory = MinMemory
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// TestVeilSlowRelay: whoever is met through a relay behind a slow bridge is given
// the round trips that it takes, which are more than the swarm's time for a dial.
func TestVeilSlowRelay(t *testing.T) {
	t.Parallel()
	cert := selfSigned(t, "cats.example")
	bridge := loopbackHost(t, Config{
		Role: Community, Relay: true,
		Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")},
		Bridge: veiled(cert),
	})
	home := loopbackHost(t, Config{Role: Contacts})
	if _, err := home.Reserve(t.Context(), peer.AddrInfo{ID: bridge.ID(), Addrs: bridge.Network().ListenAddresses()}); err != nil {
		t.Fatal(err)
	}
	const late = 900 * time.Millisecond
	guest := loopbackHost(t, Config{Role: Contacts, Veil: VeilClient{DialTCP: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return newLateConn(c, late), nil
	}}})
	guest.Peerstore().AddAddr(bridge.ID(), veilAt(t, bridge, cert), peerstore.PermanentAddrTTL)
	start := time.Now()
	err := guest.Connect(Roundabout(t.Context()), peer.AddrInfo{ID: home.ID(), Addrs: Circuit(peer.AddrInfo{ID: bridge.ID()})})
	took := time.Since(start)
	if err != nil {
		t.Fatalf("not met after %v: %v", took, err)
	}
	if took < 2*dialTimeout {
		t.Errorf("it took %v: this network is not slow", took)
	}
}

// TestRelayBesideBlockedBridge: a relay whose own address is named is dialled there,
// although it is known as a bridge as well, and that is blocked.
func TestRelayBesideBlockedBridge(t *testing.T) {
	t.Parallel()
	cert := selfSigned(t, "cats.example")
	relay := loopbackHost(t, Config{
		Role: Community, Relay: true,
		Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")},
		Bridge: veiled(cert),
	})
	home := loopbackHost(t, Config{Role: Contacts})
	open := peer.AddrInfo{ID: relay.ID(), Addrs: relay.Network().ListenAddresses()}
	if _, err := home.Reserve(t.Context(), open); err != nil {
		t.Fatal(err)
	}
	guest := loopbackHost(t, Config{Role: Contacts, Veil: VeilClient{DialTCP: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("blocked")
	}}})
	guest.Peerstore().AddAddr(relay.ID(), veilAt(t, relay, cert), peerstore.PermanentAddrTTL)
	if err := guest.Connect(Roundabout(t.Context()), peer.AddrInfo{ID: home.ID(), Addrs: Circuit(open)}); err != nil {
		t.Errorf("not met: %v", err)
	}
}

// TestDialable: where a contact was met through a bridge is remembered in a form
// that leads there again.
func TestDialable(t *testing.T) {
	const name = "/p2p/12D3KooWRYNMtdNnRnnamsYwfMzXUMXphE6mgrRsvvw8nS6A2YKT/p2p-circuit"
	for from, want := range map[string]string{
		somewhere.String() + name:       name,
		"/ip4/1.2.3.4/tcp/4040" + name:  "/ip4/1.2.3.4/tcp/4040" + name,
		"/ip4/1.2.3.4/udp/4040/quic-v1": "/ip4/1.2.3.4/udp/4040/quic-v1",
		name:                            name,
	} {
		if got := Dialable(ma.StringCast(from)); got.String() != want {
			t.Errorf("%s is dialled again at %s, want %s", from, got, want)
		}
	}
}
