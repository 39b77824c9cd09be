package transport

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// road is a TCP dialer with a censor in it: what it does to a connection is
// decided by what the connection has carried.
type road struct {
	mu     sync.Mutex
	conns  []*roadConn
	hellos [][]byte
	// hello, if set, judges the first bytes of each connection.
	hello func(n int, first []byte) verdict
	// pass, if set, judges each read and write; n counts both.
	pass func(c *roadConn) verdict
}

type verdict int

const (
	forward verdict = iota
	freeze          // nothing passes any more
	reset           // the connection breaks
)

type roadConn struct {
	net.Conn
	road     *road
	number   int
	mu       sync.Mutex
	packets  int // as a censor would count them: 1,400 bytes each way, and the handshake of TCP
	received int
	frozen   chan struct{}
	closed   chan struct{}
	once     sync.Once
}

func (r *road) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rc := &roadConn{Conn: c, road: r, number: len(r.conns), packets: 3, frozen: make(chan struct{}), closed: make(chan struct{})}
	r.conns = append(r.conns, rc)
	return rc, nil
}

func (r *road) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
}

func (c *roadConn) judge(first []byte) verdict {
	c.road.mu.Lock()
	defer c.road.mu.Unlock()
	if first != nil {
		c.road.hellos = append(c.road.hellos, slices.Clone(first))
		if c.road.hello != nil {
			return c.road.hello(len(c.road.hellos), first)
		}
	}
	if c.road.pass != nil {
		return c.road.pass(c)
	}
	return forward
}

func (c *roadConn) carry(n int, first []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.frozen:
		return nil
	default:
	}
	c.packets += (n + 1399) / 1400 * 3 / 2
	switch c.judge(first) {
	case freeze:
		close(c.frozen)
	case reset:
		c.Conn.(*net.TCPConn).SetLinger(0)
		c.Conn.Close()
		return io.ErrUnexpectedEOF
	case forward:
	}
	return nil
}

func (c *roadConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == nil {
		c.mu.Lock()
		c.received += n
		c.mu.Unlock()
		err = c.carry(n, nil)
	}
	if c.stuck() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *roadConn) Write(p []byte) (int, error) {
	var first []byte
	c.mu.Lock()
	if c.packets == 3 {
		first = p
	}
	c.mu.Unlock()
	if err := c.carry(len(p), first); err != nil {
		return 0, err
	}
	if c.stuck() {
		return len(p), nil // into the void
	}
	return c.Conn.Write(p)
}

func (c *roadConn) stuck() bool { return isClosed(c.frozen) }

func (c *roadConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestVeilSurvivesLoss kills connections at random points while bytes go both
// ways: all arrive once and in order.
func TestVeilSurvivesLoss(t *testing.T) {
	b := newTestBridge(t)
	go b.echo()
	random := rand.New(rand.NewPCG(1, 2))
	r := &road{pass: func(c *roadConn) verdict {
		if c.packets > 12 && random.IntN(40) == 0 {
			return reset
		}
		return forward
	}}
	c := dialTest(t, b, VeilClient{DialTCP: r.dial})
	for range 4 {
		echoed(t, c, randomBytes(300<<10))
	}
	if n := r.count(); n < 5 {
		t.Errorf("only %d connections: nothing was killed", n)
	} else {
		t.Logf("%d connections", n)
	}
}

// TestVeilFrozenFlows goes through a network in which a connection dies
// silently after a number of packets, or of kilobytes.
func TestVeilFrozenFlows(t *testing.T) {
	for name, pass := range map[string]func(c *roadConn) verdict{
		"25 packets": func(c *roadConn) verdict {
			if c.packets > 25 {
				return freeze
			}
			return forward
		},
		"16 KB": func(c *roadConn) verdict {
			if c.received > 16_000 {
				return freeze
			}
			return forward
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTestBridge(t)
			go b.echo()
			r := &road{pass: pass}
			var saved sync.Map
			client := VeilClient{DialTCP: r.dial, Memory: VeilMemory{
				Load: func(k ServerKey) Lesson { l, _ := saved.Load(k); got, _ := l.(Lesson); return got },
				Save: func(k ServerKey, l Lesson) { saved.Store(k, l) },
			}}
			c := dialTest(t, b, client)
			start := time.Now()
			for range 20 {
				echoed(t, c, randomBytes(1500))
			}
			t.Logf("20 messages in %v over %d connections", time.Since(start), r.count())
			start = time.Now()
			echoed(t, c, randomBytes(100<<10))
			t.Logf("100 KiB in %v, %d connections in all", time.Since(start), r.count())
			c.Close()
			<-c.done

			// Whoever comes with what was learnt has no connection die.
			c = dialTest(t, b, client)
			before := r.count()
			echoed(t, c, randomBytes(20<<10))
			dead := 0
			r.mu.Lock()
			for _, conn := range r.conns[before:] {
				if conn.stuck() {
					dead++
				}
			}
			r.mu.Unlock()
			if dead > 1 {
				t.Errorf("%d of %d connections died after it was known how much they may carry", dead, r.count()-before)
			}
		})
	}
}

// TestVeilMoved: on another network what is known of that one counts, and
// connections that the move cut teach nothing.
func TestVeilMoved(t *testing.T) {
	network := 0
	var mu sync.Mutex
	kept := map[int]Lesson{}
	d := newVeilDialer(VeilClient{Memory: VeilMemory{
		Load: func(ServerKey) Lesson { mu.Lock(); defer mu.Unlock(); return kept[network] },
		Save: func(_ ServerKey, l Lesson) { mu.Lock(); defer mu.Unlock(); kept[network] = l },
	}}, Loopback)
	site := d.site(VeilAddr{Host: "192.0.2.7", Port: 443, Family: 4})
	born := time.Now()
	for range 2 { // the first is only suspicious
		site.died(born, 20, 9000)
	}
	learnt := site.now()
	if learnt.Packets != 20 {
		t.Fatalf("learnt %+v", learnt)
	}
	network = 1
	d.moved()
	site.died(born, 12, 7000)
	site.died(born, 12, 7000)
	if got := site.now(); got != (Lesson{}) {
		t.Errorf("on a network where nothing was cut: %+v", got)
	}
	network = 0
	d.moved()
	if got := site.now(); got != learnt {
		t.Errorf("back where connections are cut: %+v, want %+v", got, learnt)
	}
}

// TestVeilHelloFallback blocks hellos, silently and loudly, until the third.
func TestVeilHelloFallback(t *testing.T) {
	for name, v := range map[string]verdict{"silence": freeze, "reset": reset} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTestBridge(t)
			go b.echo()
			r := &road{hello: func(n int, _ []byte) verdict {
				if n < 3 {
					return v
				}
				return forward
			}}
			var saved []Lesson
			c := dialTest(t, b, VeilClient{DialTCP: r.dial, Memory: VeilMemory{
				Load: func(ServerKey) Lesson { return Lesson{} },
				Save: func(_ ServerKey, l Lesson) { saved = append(saved, l) },
			}})
			echoed(t, c, randomBytes(1000))
			if len(saved) != 1 || saved[0].Hello != BuiltInHellos()[2].Name {
				t.Errorf("remembered %+v", saved)
			}
			if n := r.count(); n != 3 {
				t.Errorf("%d connections for three hellos", n)
			}
			// The one that works comes first now.
			echoed(t, dialTest2(t, b, c.dialer), randomBytes(10))
			if n := r.count(); n != 4 {
				t.Errorf("%d connections after the working hello was known", n)
			}
		})
	}
}

func dialTest2(t testing.TB, b *testBridge, d *veilDialer) *veilCaller {
	t.Helper()
	c, err := d.dial(t.Context(), b.addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestVeilWrongCertificate shows that the path isn't uttered to anybody but the
// bridge (docs/spec/veil.md, section 5.1).
func TestVeilWrongCertificate(t *testing.T) {
	b := newTestBridge(t)
	dial := func(v VeilAddr, client VeilClient) error {
		d := newVeilDialer(client, Loopback)
		defer d.close()
		c, err := d.dial(t.Context(), v)
		if err != nil {
			return err
		}
		c.Write([]byte("x"))
		_, err = c.Read(make([]byte, 1))
		return err
	}
	other := b.addr
	other.Pin = &Pin{1}
	if err := dial(other, VeilClient{}); !errors.Is(err, errWrongCertificate) {
		t.Errorf("another pin: %v", err)
	}
	named := b.addr
	named.Pin = nil
	if err := dial(named, VeilClient{}); !errors.Is(err, errWrongCertificate) {
		t.Errorf("nobody vouches for it: %v", err)
	}
	roots := x509.NewCertPool()
	cert, _ := b.bridge.Certificate(nil)
	roots.AddCert(cert.Leaf)
	named.SNI = "dogs.example"
	if err := dial(named, VeilClient{Roots: roots}); !errors.Is(err, errWrongCertificate) {
		t.Errorf("another name: %v", err)
	}
	b.mu.Lock()
	if n := len(b.sessions); n != 0 {
		t.Errorf("%d sessions", n)
	}
	b.mu.Unlock()
	if seen := b.site.requests(); len(seen) != 0 {
		t.Errorf("the server heard %v", seen)
	}

	go b.echo()
	named.SNI = "cats.example"
	if err := dial(named, VeilClient{Roots: roots}); err != nil {
		t.Errorf("a certificate that is vouched for: %v", err)
	}
	// A path that was revoked is told from a bridge that is away.
	wrong := b.addr
	wrong.Path = "AAAAAAAAAAAAAAAAAAAAAA"
	if err := dial(wrong, VeilClient{}); !errors.Is(err, errNotBridge) {
		t.Errorf("an unknown path: %v", err)
	}
	if seen := b.site.requests(); !slices.Equal(seen, []string{"POST /AAAAAAAAAAAAAAAAAAAAAA"}) {
		t.Errorf("the site saw %v", seen)
	}
}

// TestVeilNoHellos: a list without hellos is no list, nil or not.
func TestVeilNoHellos(t *testing.T) {
	b := newTestBridge(t)
	go b.echo()
	for _, hellos := range [][]Hello{nil, {}} {
		c := dialTest(t, b, VeilClient{Hellos: hellos})
		echoed(t, c, []byte("x"))
		c.Close()
		<-c.done
	}
}

// TestVeilHello compares hellos with Go's by the ciphers in JA4, which censors
// block by (docs/spec/veil.md, section 5.1).
func TestVeilHello(t *testing.T) {
	b := newTestBridge(t)
	go b.echo()
	r := &road{}
	for _, h := range BuiltInHellos() {
		c := dialTest(t, b, VeilClient{DialTCP: r.dial, Hellos: []Hello{h}})
		echoed(t, c, []byte("x"))
		c.Close()
		<-c.done
	}
	conn, err := r.dial(t.Context(), "tcp", b.addr.hostPort())
	if err != nil {
		t.Fatal(err)
	}
	stock := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: "cats.example", NextProtos: []string{"h2", "http/1.1"}})
	if err := stock.Handshake(); err != nil {
		t.Fatal(err)
	}
	stock.Close()
	seen := map[string]bool{}
	for i, h := range r.hellos {
		ciphers, name := parseHello(t, h)
		if name != "cats.example" {
			t.Errorf("hello %d names %q", i, name)
		}
		if seen[ciphers] && i == len(r.hellos)-1 {
			t.Error("a hello has Go's ciphers")
		}
		seen[ciphers] = true
	}
	if len(r.hellos) != len(BuiltInHellos())+1 {
		t.Errorf("%d hellos", len(r.hellos))
	}

	// A hello that was recorded is sent with the same ciphers and extensions.
	recorded, err := RecordedHello("mine", r.hellos[0])
	if err != nil {
		t.Fatal(err)
	}
	c := dialTest(t, b, VeilClient{DialTCP: r.dial, Hellos: []Hello{recorded}})
	echoed(t, c, []byte("x"))
	want, _ := parseHello(t, r.hellos[0])
	if got, _ := parseHello(t, r.hellos[len(r.hellos)-1]); got != want {
		t.Error("a recorded hello is sent otherwise")
	}
	for name, record := range map[string][]byte{
		"nothing": nil, "no hello": []byte("GET / HTTP/1.1\r\n\r\n"), "cut": r.hellos[0][:100], "long": make([]byte, MaxHello+1),
		"an extension of tomorrow": withExtension(r.hellos[0], 0xfa01),
	} {
		if _, err := RecordedHello("x", record); err == nil {
			t.Errorf("recorded hello, %s: accepted", name)
		}
	}
	// Chromium 156 asks for trust anchors, which utls does not know.
	if _, err := RecordedHello("x", withExtension(r.hellos[0], 0xca34)); err != nil {
		t.Error(err)
	}
}

// withExtension returns a ClientHello with one more extension, of two bytes.
func withExtension(record []byte, id uint16) []byte {
	more := []byte{byte(id >> 8), byte(id), 0, 2, 0, 0}
	out := append(slices.Clone(record), more...)
	grow := func(at int) {
		binary.BigEndian.PutUint16(out[at:], binary.BigEndian.Uint16(out[at:])+uint16(len(more)))
	}
	grow(3) // the record
	grow(7) // the hello: the lower two of its three bytes
	at := 5 + 4 + 2 + 32
	at += 1 + int(out[at])
	at += 2 + int(binary.BigEndian.Uint16(out[at:]))
	at += 1 + int(out[at])
	grow(at)
	return out
}

// parseHello returns a hash of the ciphers of a ClientHello, without GREASE,
// and the server's name in it.
func parseHello(t testing.TB, record []byte) (ciphers, name string) {
	t.Helper()
	s := cryptobyte.String(record)
	var suites, extensions, ignored cryptobyte.String
	if !s.Skip(5+4+2+32) || !s.ReadUint8LengthPrefixed(&ignored) || !s.ReadUint16LengthPrefixed(&suites) ||
		!s.ReadUint8LengthPrefixed(&ignored) || !s.ReadUint16LengthPrefixed(&extensions) {
		t.Fatalf("no hello: %x", record[:min(len(record), 50)])
	}
	var list []string
	for !suites.Empty() {
		var c uint16
		suites.ReadUint16(&c)
		if c&0x0f0f != 0x0a0a {
			list = append(list, fmt.Sprintf("%04x", c))
		}
	}
	slices.Sort(list)
	for !extensions.Empty() {
		var kind uint16
		var body cryptobyte.String
		extensions.ReadUint16(&kind)
		extensions.ReadUint16LengthPrefixed(&body)
		if kind == 0 {
			name = string(body[5:])
		}
	}
	sum := sha256.Sum256([]byte(strings.Join(list, ",")))
	return hex.EncodeToString(sum[:6]), name
}

// TestVeilFrequentHellos goes through a network that blocks a hello that it
// sees too often, and cuts connections so that many are needed.
func TestVeilFrequentHellos(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as the censor's memory")
	}
	b := newTestBridge(t)
	go b.echo()
	last := map[string][]time.Time{}
	r := &road{
		hello: func(_ int, first []byte) verdict {
			c, _ := parseHello(t, first)
			recent := slices.DeleteFunc(last[c], func(at time.Time) bool { return time.Since(at) > 5*time.Second })
			last[c] = append(recent, time.Now())
			if len(last[c]) >= 3 {
				return freeze
			}
			return forward
		},
		pass: func(c *roadConn) verdict {
			if c.packets > 25 {
				return freeze
			}
			return forward
		},
	}
	c := dialTest(t, b, VeilClient{DialTCP: r.dial})
	start := time.Now()
	for i := range 8 {
		echoed(t, c, randomBytes(500))
		t.Logf("message %d after %v, %d connections", i, time.Since(start), r.count())
	}
}

// TestVeilDeadlines holds the stream to what net.Conn promises.
func TestVeilDeadlines(t *testing.T) {
	b := newTestBridge(t)
	held := make(chan net.Conn, 1)
	go func() {
		if c, err := b.Accept(); err == nil {
			held <- c
		}
	}()
	c := dialTest(t, b, VeilClient{})
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
		t.Errorf("a read past its deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	// Nobody reads at the other end: the buffers fill, and no more.
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := c.Write(make([]byte, 8<<20))
	if !isTimeout(err) || n < veilBuffer || n > 3*veilBuffer {
		t.Errorf("wrote %d bytes to a reader that doesn't read: %v", n, err)
	}
	// When it reads, all of it goes on.
	there := <-held
	go func() {
		c.SetWriteDeadline(time.Time{})
		c.Write(make([]byte, 4<<20))
		c.Close()
	}()
	if got, err := io.Copy(io.Discard, there); err != nil || got != int64(n)+4<<20 {
		t.Errorf("read %d of %d bytes: %v", got, n+4<<20, err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// TestVeilOneSlow: however much comes before an answer that is slow, nothing is
// missing when that has come at last.
func TestVeilOneSlow(t *testing.T) {
	d := newVeilDialer(VeilClient{DialTCP: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done() // the exchanges that step begins go nowhere: the test answers
		return nil, ctx.Err()
	}}, Loopback)
	addr := VeilAddr{Host: "127.0.0.1", Family: 4, Port: 1}
	const all = 40 * minChunk
	c := &veilCaller{
		veilStream: newVeilStream(nil, nil), dialer: d, site: d.site(addr), addr: addr, early: make(map[uint64]*veilAnswer),
		opened: true, written: all, patience: answerPatience, lastGood: time.Now(),
	}
	ctx, cancel := context.WithCancel(t.Context())
	var exchanges sync.WaitGroup
	defer func() {
		c.mu.Lock()
		c.fail(net.ErrClosed)
		c.mu.Unlock()
		cancel()
		exchanges.Wait()
	}()
	var asked []uint64
	step := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.chunk = minChunk
		before := max(c.asked, c.got)
		if _, over := c.step(ctx, &exchanges); over {
			t.Fatal("the stream ended:", c.broken)
		}
		for ; before < c.asked; before += minChunk {
			asked = append(asked, before)
		}
	}
	answer := func(from uint64) {
		x := &exchange{kind: pulling, req: veilRequest{from: from, most: minChunk}, size: minChunk, started: time.Now()}
		c.settle(x, new(veilLink), &veilAnswer{offset: from, written: all, data: make([]byte, minChunk)}, nil)
	}
	step()
	slow := asked[0]
	for asked = asked[1:]; len(asked) > 0; step() { // all others are quick
		answer(asked[0])
		asked = asked[1:]
	}
	answer(slow)
	for step(); len(asked) > 0; step() {
		answer(asked[0])
		asked = asked[1:]
	}
	if c.got != all {
		t.Errorf("%d of %d bytes arrived, and nobody asks for more", c.got, all)
	}
}

// TestVeilGathers: what is written in one moment goes in one request, much of it at once.
func TestVeilGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		site := &veilSite{client: &VeilClient{}}
		site.begin()
		c := &veilCaller{
			veilStream: newVeilStream(nil, nil), site: site, opened: true, peerLimit: veilBuffer, chunk: firstChunk,
			lastGood: time.Now(), polls: 1, dialling: maxLanes, // so that nothing leaves
		}
		ctx, cancel := context.WithCancel(t.Context())
		var exchanges sync.WaitGroup
		defer exchanges.Wait()
		defer cancel()
		after := func(n int) (wait time.Duration, pushes int) {
			t.Helper()
			if _, err := c.Write(make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			wait, _ = c.step(ctx, &exchanges)
			return wait, c.pushes
		}
		if wait, pushes := after(30); pushes != 0 || wait != gatherTime {
			t.Errorf("after a little there are %d requests, and the next look is in %v", pushes, wait)
		}
		time.Sleep(gatherTime)
		if _, pushes := after(96); pushes != 1 || c.sent != 126 {
			t.Errorf("a moment later there are %d requests, with %d bytes", pushes, c.sent)
		}
		if _, pushes := after(maxVeilPad); pushes != 2 {
			t.Errorf("after much there are %d requests", pushes)
		}
	})
}
