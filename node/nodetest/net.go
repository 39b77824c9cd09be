// Package nodetest is test support: a simulated network under real libp2p
// hosts, with latency, loss, partitions, black holes and crashes. Above the
// simulated wire everything is real: TLS, yamux, swarm, identify and the DHT.
//
// It is made for testing/synctest: in a bubble all waiting is in virtual time,
// so minutes of network life take milliseconds. Everything belonging to a
// Network is then made, used and closed inside one bubble.
package nodetest

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/kith-im/kith/node/transport"
)

const (
	// retransmit is how long a lost segment is late, doubled each time it is
	// lost again: what the least retransmission timeout of a TCP is.
	retransmit = 200 * time.Millisecond
	// backlog is how many connections wait for Accept before more are refused.
	backlog       = 128
	ephemeralPort = 49152
	// natPort is the one port by which a PortNAT shows its machine to everybody.
	natPort = 40000
)

// Network is a simulated IP network that carries byte streams. Its methods may
// be called from any goroutine of its bubble.
type Network struct {
	mu        sync.Mutex
	rng       *rand.Rand
	latency   time.Duration
	loss      float64
	group     map[netip.Addr]int // side of the partition; nil: none
	hole      map[netip.Addr]bool
	nats      map[netip.Addr]NAT
	knocking  map[[2]netip.Addr]*knock // dials, from and to, that a NAT does not let in
	dials     map[[2]netip.Addr]int
	oneWay    map[[2]netip.Addr]bool // what the first sends does not reach the second
	listeners map[netip.AddrPort]*listener
	conns     map[*conn]struct{}
	dead      map[netip.Addr]bool // crashed
	hosts     map[netip.Addr][]*transport.Host
	ports     uint16
	changed   chan struct{} // closed and replaced when a link comes or goes
	tap       Tap
	taps      int // how often tap was set
}

// NewNetwork makes an empty network without latency or loss. What chance it
// needs comes from seed; goroutines still run in any order.
func NewNetwork(seed uint64) *Network {
	return &Network{
		rng:       rand.New(rand.NewPCG(seed, 0)),
		hole:      make(map[netip.Addr]bool),
		nats:      make(map[netip.Addr]NAT),
		knocking:  make(map[[2]netip.Addr]*knock),
		dials:     make(map[[2]netip.Addr]int),
		oneWay:    make(map[[2]netip.Addr]bool),
		listeners: make(map[netip.AddrPort]*listener),
		conns:     make(map[*conn]struct{}),
		dead:      make(map[netip.Addr]bool),
		hosts:     make(map[netip.Addr][]*transport.Host),
		changed:   make(chan struct{}),
	}
}

// SetLatency sets the time one way for what is sent from now on.
func (n *Network) SetLatency(d time.Duration) { n.update(func() { n.latency = d }) }

// SetLoss sets the share of segments lost, from 0 to below 1. Streams are
// reliable: a lost segment is late by one or more retransmission timeouts.
func (n *Network) SetLoss(share float64) { n.update(func() { n.loss = share }) }

// Partition divides the network: hosts of different groups no longer hear one
// another, nor does a host in no group hear anyone in one. Connections stay and
// stall, as over the Internet, until Heal or their own timeouts.
func (n *Network) Partition(groups ...[]netip.Addr) {
	n.update(func() {
		n.group = make(map[netip.Addr]int)
		for i, g := range groups {
			for _, ip := range g {
				n.group[ip] = i + 1
			}
		}
	})
}

// Blackhole makes everything from and to ip vanish until Heal.
func (n *Network) Blackhole(ip netip.Addr) { n.update(func() { n.hole[ip] = true }) }

// NAT is what stands before a machine.
type NAT uint8

// The kinds of NAT, by what becomes of two machines that dial each other at the
// same time.
const (
	NoNAT        NAT = iota // everybody gets in
	PortNAT                 // nobody gets in who is not dialled at the same time
	SymmetricNAT            // nobody gets in
)

// SetNAT puts a NAT before a machine. What is not let in is not answered.
func (n *Network) SetNAT(ip netip.Addr, kind NAT) { n.update(func() { n.nats[ip] = kind }) }

// Dials returns how often one machine has dialled another.
func (n *Network) Dials(from, to netip.Addr) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[[2]netip.Addr{from, to}]
}

// knock is a dial that waits before a NAT.
type knock struct {
	at     netip.AddrPort // what was dialled
	opened chan *conn     // takes one
}

// A Tap is called for every stream between two machines and returns what is
// called with each piece that from writes to it, in clear and in order. What that
// returns travels in the piece's place: nothing, if it is empty. It must not keep b.
type Tap func(from, to netip.Addr) func(b []byte) []byte

// Tap puts f into every stream, present and future, in the place of an earlier
// one; nil ends that. It stands where a broken or hostile peer does: above TLS,
// which nobody on the wire can.
func (n *Network) Tap(f Tap) { n.update(func() { n.tap = f; n.taps++ }) }

// Cut makes what from sends to to vanish until Heal; the other way goes on.
func (n *Network) Cut(from, to netip.Addr) {
	n.update(func() { n.oneWay[[2]netip.Addr{from, to}] = true })
}

// Heal ends all partitions, cuts and black holes. What stalled connections had
// sent arrives.
func (n *Network) Heal() { n.update(func() { n.group = nil; clear(n.hole); clear(n.oneWay) }) }

// update changes the links and wakes everyone who waits for one.
func (n *Network) update(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	close(n.changed)
	n.changed = make(chan struct{})
}

// link reports whether what a sends reaches b, and a channel closed when that may
// have changed.
func (n *Network) link(a, b netip.Addr) (up bool, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	up = !n.hole[a] && !n.hole[b] && !n.oneWay[[2]netip.Addr{a, b}] && (n.group == nil || n.group[a] == n.group[b])
	return up, n.changed
}

// delay draws how long the next segment takes.
func (n *Network) delay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.latency
	for timeout := retransmit; n.loss > 0 && n.rng.Float64() < n.loss; timeout *= 2 {
		d += timeout
	}
	return d
}

// Kill crashes a machine: its connections and listeners vanish at once, without
// a goodbye, and others see a reset. Then it closes what Host made there. The
// machine is back when a host is next made on it.
func (n *Network) Kill(ip netip.Addr) {
	n.mu.Lock()
	hosts := n.hosts[ip]
	delete(n.hosts, ip)
	n.dead[ip] = true
	var doomed []*conn
	for c := range n.conns {
		if c.local.Addr() == ip || c.remote.Addr() == ip {
			doomed = append(doomed, c)
		}
	}
	var silent []*listener
	for at, l := range n.listeners {
		if at.Addr() == ip {
			silent = append(silent, l)
		}
	}
	n.mu.Unlock()
	for _, l := range silent {
		l.Close()
	}
	for _, c := range doomed {
		c.abort()
	}
	for _, h := range hosts {
		_ = h.Close() // it has nothing left to lose
	}
}

// listen opens a listener; port 0 picks one.
func (n *Network) listen(at netip.AddrPort) (*listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if at.Port() == 0 {
		at = netip.AddrPortFrom(at.Addr(), n.port())
	}
	if n.dead[at.Addr()] {
		return nil, opError("listen", syscall.ENETDOWN)
	}
	if n.listeners[at] != nil {
		return nil, opError("listen", syscall.EADDRINUSE)
	}
	l := &listener{network: n, at: at, accept: make(chan *conn, backlog), closed: make(chan struct{})}
	n.listeners[at] = l
	return l, nil
}

func (n *Network) port() uint16 {
	n.ports++
	return ephemeralPort + n.ports%(1<<16-ephemeralPort)
}

// dial connects from a machine to a listener. Without a link it waits, as for
// answers that don't come, until ctx ends.
func (n *Network) dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*conn, error) {
	n.mu.Lock()
	n.dials[[2]netip.Addr{from, to.Addr()}]++
	n.mu.Unlock()
	timer := time.NewTimer(n.delay() + n.delay())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, opError("dial", ctx.Err())
	}
	for {
		up, changed := n.link(from, to.Addr())
		back, _ := n.link(to.Addr(), from)
		if up && back {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, opError("dial", ctx.Err())
		}
	}
	n.mu.Lock()
	if n.nats[to.Addr()] != NoNAT && to.Addr() != from {
		return n.knock(ctx, from, to)
	}
	defer n.mu.Unlock()
	l := n.listeners[to]
	if l == nil || n.dead[from] {
		return nil, opError("dial", syscall.ECONNREFUSED)
	}
	port := n.port()
	if n.nats[from] == PortNAT {
		port = natPort
	}
	ours := &conn{network: n, local: netip.AddrPortFrom(from, port), remote: to, in: newPipe()}
	theirs := &conn{network: n, local: to, remote: ours.local, in: newPipe(), peer: ours}
	ours.peer = theirs
	select {
	case l.accept <- theirs:
	default:
		return nil, opError("dial", syscall.ECONNREFUSED)
	}
	n.conns[ours], n.conns[theirs] = struct{}{}, struct{}{}
	return ours, nil
}

// dialFrom returns how a machine's probes dial: in the simulated network, or
// they would ask the real one for addresses that are made up.
func (n *Network) dialFrom(ip netip.Addr) transport.DialFunc {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, opError("dial", err)
		}
		c, err := n.dial(ctx, ip, to)
		if err != nil {
			return nil, err // not c: a nil *conn is no nil net.Conn
		}
		return c, nil
	}
}

// knock waits until the machine that is dialled dials back, if the NATs before
// the two let that through. The caller holds mu, which knock gives back.
func (n *Network) knock(ctx context.Context, from netip.Addr, to netip.AddrPort) (*conn, error) {
	hopeless := n.nats[to.Addr()] != PortNAT || n.nats[from] == SymmetricNAT || to.Port() != natPort
	if other := n.knocking[[2]netip.Addr{to.Addr(), from}]; other != nil && !hopeless {
		ours := &conn{network: n, local: other.at, remote: to, in: newPipe()}
		theirs := &conn{network: n, local: to, remote: other.at, in: newPipe(), peer: ours}
		ours.peer = theirs
		n.conns[ours], n.conns[theirs] = struct{}{}, struct{}{}
		delete(n.knocking, [2]netip.Addr{to.Addr(), from})
		n.mu.Unlock()
		other.opened <- theirs
		return ours, nil
	}
	k := &knock{at: to, opened: make(chan *conn, 1)}
	here := [2]netip.Addr{from, to.Addr()}
	if !hopeless {
		n.knocking[here] = k
	}
	n.mu.Unlock()
	select {
	case c := <-k.opened:
		return c, nil
	case <-ctx.Done():
	}
	n.mu.Lock()
	if n.knocking[here] == k {
		delete(n.knocking, here)
	}
	n.mu.Unlock()
	select {
	case c := <-k.opened:
		c.abort() // nobody takes it
	default:
	}
	return nil, opError("dial", ctx.Err())
}

func opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Err: err}
}

// listener is a net.Listener.
type listener struct {
	network *Network
	at      netip.AddrPort
	accept  chan *conn
	once    sync.Once
	closed  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, opError("accept", net.ErrClosed)
	}
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

// Close resets connections nobody accepted.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, l.at)
		l.network.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.accept:
				c.abort()
			default:
				return
			}
		}
	})
	return nil
}

// conn is one end of a simulated TCP connection. Writes never block: what is
// in flight is bounded by the windows of the multiplexer above.
type conn struct {
	network       *Network
	local, remote netip.AddrPort
	peer          *conn
	in            *pipe // what the peer sent
}

func (c *conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *conn) Read(b []byte) (int, error) {
	return c.in.read(b, func() (bool, <-chan struct{}) { return c.network.link(c.remote.Addr(), c.local.Addr()) })
}

func (c *conn) Write(b []byte) (int, error) {
	if err := c.in.ended(); err != nil || len(b) == 0 {
		return 0, err
	}
	if err := c.peer.in.send(segment{data: bytes.Clone(b)}, c.network.delay()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close sends what was written and an end of stream.
func (c *conn) Close() error {
	c.in.end(net.ErrClosed)
	_ = c.peer.in.send(segment{end: true}, c.network.delay()) // fails only if the peer has closed too
	c.forget()
	return nil
}

// abort ends both directions at once.
func (c *conn) abort() {
	c.in.end(opError("read", syscall.ECONNRESET))
	c.peer.in.end(opError("read", syscall.ECONNRESET))
	c.forget()
	c.peer.forget()
}

func (c *conn) forget() {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	delete(c.network.conns, c)
}

func (c *conn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.in.setDeadline(t) }
func (c *conn) SetWriteDeadline(_ time.Time) error { return c.in.ended() }

// pipe is one direction of a connection: segments, each with the time it arrives.
type pipe struct {
	mu       sync.Mutex
	segments []segment
	last     time.Time // arrival of the newest: order is kept
	deadline time.Time
	err      error         // set when reading has ended for good
	changed  chan struct{} // closed and replaced when any of the above changes
}

type segment struct {
	at   time.Time
	data []byte
	end  bool // end of stream
}

func newPipe() *pipe { return &pipe{changed: make(chan struct{})} }

func (p *pipe) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pipe) send(s segment, delay time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return opError("write", syscall.EPIPE)
	}
	s.at = time.Now().Add(delay)
	if s.at.Before(p.last) {
		s.at = p.last
	}
	p.last = s.at
	p.segments = append(p.segments, s)
	p.wake()
	return nil
}

func (p *pipe) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err, p.segments = err, nil
		p.wake()
	}
}

func (p *pipe) ended() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *pipe) setDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	p.wake()
	return p.err
}

// read waits until the first segment has arrived and the link is up.
func (p *pipe) read(b []byte, link func() (bool, <-chan struct{})) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		up, linkChanged := link()
		p.mu.Lock()
		now := time.Now()
		if p.err != nil {
			defer p.mu.Unlock()
			return 0, p.err
		}
		if !p.deadline.IsZero() && !now.Before(p.deadline) {
			p.mu.Unlock()
			return 0, opError("read", os.ErrDeadlineExceeded)
		}
		if up && len(p.segments) > 0 && !p.segments[0].at.After(now) {
			defer p.mu.Unlock()
			return p.take(b)
		}
		next := p.deadline
		if up && len(p.segments) > 0 && (next.IsZero() || p.segments[0].at.Before(next)) {
			next = p.segments[0].at
		}
		changed := p.changed
		p.mu.Unlock()

		var timer *time.Timer
		var due <-chan time.Time
		if !next.IsZero() {
			timer = time.NewTimer(next.Sub(now))
			due = timer.C
		}
		select {
		case <-changed:
		case <-linkChanged:
		case <-due:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// take copies from the first segment, which is there.
func (p *pipe) take(b []byte) (int, error) {
	s := &p.segments[0]
	if s.end {
		return 0, io.EOF
	}
	k := copy(b, s.data)
	s.data = s.data[k:]
	if len(s.data) == 0 {
		p.segments = p.segments[1:]
	}
	return k, nil
}
