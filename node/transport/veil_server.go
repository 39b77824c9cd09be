package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Limits of a bridge.
const (
	maxVeilSessions = 1024 // as many as a community node has connections
	// maxPerSource is for an IPv4 address or an IPv6 /56: fifty people behind
	// one NAT have two hosts each, and leave an old session when they roam.
	maxPerSource   = 160
	maxPerSession  = 16      // requests at once; more are answered empty
	maxEndedKept   = 1 << 14 // ids of sessions that are over, so that replaying them gives the site
	waitingToEnter = 64      // sessions that libp2p hasn't taken yet
	// maxBodies requests are read at one time, each of up to 257 KiB, and
	// maxBodiesPerSource from one source: fifty people behind one NAT seldom send
	// more at once, and who is told to come back does.
	maxBodies          = 256
	maxBodiesPerSource = 64

	// maxVisits bounds the connections of all visitors, of whom the resource
	// manager hears nothing, and maxVisitsFrom those of one source: its sessions,
	// and a few beside each where connections carry little.
	maxVisits     = 4096
	maxVisitsFrom = 512

	sessionIdle   = 2 * time.Minute       // without any request, a session ends
	sessionLinger = 10 * time.Second      // after the end, for what is still to be fetched or on its way
	maxHold       = time.Minute           // nginx and most proxies give up on a request then
	gapPatience   = 3 * time.Second       // for a request that another was to come before
	maxGatherTime = 50 * time.Millisecond // for more to answer with; who is very far waits no longer
	bodyPatience  = 2 * time.Minute       // for 256 KiB on a bad line
	headPatience  = 15 * time.Second
	idlePatience  = 75 * time.Second // nginx's keepalive_timeout
)

var errBridgeClosed = fmt.Errorf("the bridge is closed: %w", net.ErrClosed)

// veilServer is a bridge: the HTTP handler in front of the operator's site, and
// the listener from which libp2p takes the streams.
type veilServer struct {
	bridge Bridge
	listen net.Listener
	addr   ma.Multiaddr
	http   *http.Server
	enter  chan *veilSession
	closed chan struct{}
	once   sync.Once
	served chan struct{} // closed when http has ended

	mu       sync.Mutex
	sessions map[sessionID]*veilSession
	sources  map[netip.Prefix]int
	bodies   map[netip.Prefix]int // being read, by source
	reading  int                  // of all of them
	ended    map[sessionID]bool
	order    []sessionID // of ended, a ring
	oldest   int
}

// veilSession is the server's end of a stream.
type veilSession struct {
	*veilStream
	server   *veilServer
	id       sessionID
	path     string
	source   netip.Prefix
	idle     *time.Timer
	numbers  replayWindow
	parked   uint64        // number of the one request that may wait
	answered time.Time     // when that was, until there is another
	turn     time.Duration // from there to the next: a round trip, or more; 0: there was none
	requests int
	remote   ma.Multiaddr
}

// newVeilServer listens and serves; the caller closes it.
func newVeilServer(bridge Bridge) (*veilServer, error) {
	network, address, err := manet.DialArgs(bridge.Listen)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return nil, errors.New("a bridge listens on an IP address and a TCP port")
	}
	if bridge.Path == nil || bridge.Site == nil {
		return nil, errors.New("a bridge needs its secret paths and its site")
	}
	if bridge.Certificate == nil && ReachOf(bridge.Listen) != Loopback {
		return nil, errors.New("a bridge behind a web server listens on loopback")
	}
	// Keep-alives of TCP would use up the few packets that some networks let a
	// connection have; those of HTTP end what is dead.
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), network, address)
	if err != nil {
		return nil, err
	}
	addr, err := manet.FromNetAddr(l.Addr())
	if err != nil {
		l.Close()
		return nil, err
	}
	if bridge.Certificate != nil { // else the operator's web server does it
		l = &door{Listener: l, most: maxVisits, mostFrom: maxVisitsFrom, from: make(map[netip.Prefix]int)}
	}
	v := &veilServer{
		bridge: bridge, listen: l, addr: addr,
		enter:  make(chan *veilSession, waitingToEnter),
		closed: make(chan struct{}), served: make(chan struct{}),
		sessions: make(map[sessionID]*veilSession), sources: make(map[netip.Prefix]int), bodies: make(map[netip.Prefix]int),
		ended: make(map[sessionID]bool), order: make([]sessionID, 0, maxEndedKept),
	}
	v.http = &http.Server{
		Handler:           v,
		ReadHeaderTimeout: headPatience,
		IdleTimeout:       idlePatience,
		// What a visitor does wrong is the visitor's business.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	go func() {
		defer close(v.served)
		if bridge.Certificate == nil {
			_ = v.http.Serve(l) // ends with Close, or when nothing can be accepted any more
			return
		}
		v.http.TLSConfig = &tls.Config{
			GetCertificate: bridge.Certificate,
			NextProtos:     append([]string{"h2", "http/1.1"}, bridge.NextProtos...),
			MinVersion:     tls.VersionTLS12,
			// Fewer packets, and what nginx does.
			DynamicRecordSizingDisabled: true,
		}
		_ = v.http.ServeTLS(l, "", "")
	}()
	return v, nil
}

// ServeHTTP gives every visitor the site, and who knows a secret path and
// speaks to it as docs/spec/veil.md, section 5, says, the stream.
func (v *veilServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	// Asked about every request, so that it takes the same time for all.
	if !v.bridge.Path(path) || r.Method != http.MethodPost || r.ContentLength > maxVeilBody+maxVeilPad {
		v.bridge.Site.ServeHTTP(w, r)
		return
	}
	from, _ := v.source(r)
	done, ok := v.read(sourceOf(from))
	if !ok {
		w.Header().Set("Retry-After", "1")
		http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyPatience))
	body, err := io.ReadAll(io.LimitReader(r.Body, maxVeilBody+maxVeilPad))
	_ = control.SetReadDeadline(time.Time{}) // one that passes later would cancel the request
	done()
	var req veilRequest
	if err == nil {
		err = req.unmarshal(body)
	}
	var answer *veilAnswer
	if err == nil {
		answer = v.exchange(r, path, &req)
	}
	if answer == nil {
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
		v.bridge.Site.ServeHTTP(w, r)
		return
	}
	answer.padding = padTo(answerHead + len(answer.data))
	h := w.Header()
	h.Set("Content-Type", veilContentType)
	h.Set("Cache-Control", "no-store")
	b := answer.marshal()
	h.Set("Content-Length", fmt.Sprint(len(b)))
	_, _ = w.Write(b) // what is lost is asked for again
}

// read takes a place among the bodies that are read. The caller calls done.
func (v *veilServer) read(source netip.Prefix) (done func(), ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	most := maxBodiesPerSource
	if source.Addr().IsLoopback() {
		most = maxBodies / 2 // a web server that doesn't say whom it speaks for
	}
	if v.reading >= maxBodies || v.bodies[source] >= most {
		return nil, false
	}
	v.reading++
	v.bodies[source]++
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.reading--
		if v.bodies[source]--; v.bodies[source] == 0 {
			delete(v.bodies, source)
		}
	}, true
}

// exchange answers one request, or returns nil if it gets the site.
func (v *veilServer) exchange(r *http.Request, path string, req *veilRequest) *veilAnswer {
	s, full := v.session(r, path, req)
	if full {
		return &veilAnswer{flags: veilAbort}
	}
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.numbers.use(req.number) || req.from < req.received || req.from > s.end() || !s.acknowledged(req.received) {
		return nil
	}
	s.requests++
	defer func() {
		s.requests--
		if s.broken == nil {
			s.idle.Reset(sessionIdle)
		} else {
			s.idle.Reset(sessionLinger)
		}
	}()
	crowded := s.requests > maxPerSession

	// Data that leaves a gap waits for what fills it.
	ctx := r.Context()
	gap := time.NewTimer(gapPatience)
	defer gap.Stop()
	for waiting := true; !s.arrived(req.offset, req.data, req.flags&veilFin != 0) && waiting && !crowded && s.broken == nil; {
		waiting = s.await(ctx, gap.C)
	}
	if req.flags&veilAbort != 0 {
		s.fail(errPeerLeft) // the session stays for requests that are still on their way
		return &veilAnswer{accepted: s.got, limit: s.got, written: s.end(), offset: s.end(), flags: veilAbort}
	}

	// The newest request with nothing to answer is parked, and only that one.
	if req.hold > 0 && req.most > 0 && !crowded {
		s.parked = req.number
		s.wake()
		if !s.answered.IsZero() {
			s.turn, s.answered = time.Since(s.answered), time.Time{}
		}
		limit := s.limit()
		hold := time.NewTimer(min(time.Duration(req.hold)*time.Millisecond, maxHold))
		defer hold.Stop()
		for waiting := true; waiting && req.from >= s.end() && !s.closed && s.broken == nil && s.parked == req.number &&
			(req.written <= limit || s.limit() < limit+veilBuffer/4); {
			waiting = s.await(ctx, hold.C)
		}
		// Who writes a little mostly writes a little more at once, for which the
		// next request would come a round trip later.
		more := time.NewTimer(min(max(s.turn/8, gatherTime), maxGatherTime))
		defer more.Stop()
		for waiting := true; waiting && req.from < s.end() && s.end()-req.from < min(uint64(req.most), maxVeilPad) &&
			s.base <= req.from && !s.closed && s.broken == nil && s.parked == req.number; {
			waiting = s.await(ctx, more.C)
		}
		if s.parked == req.number {
			s.answered = time.Now()
		}
	}
	a := &veilAnswer{accepted: s.got, limit: s.limit(), written: s.end(), offset: req.from}
	if s.broken != nil {
		a.flags = veilAbort
		return a
	}
	a.data = s.slice(req.from, int(min(req.most, maxVeilData)))
	if s.closed && a.offset+uint64(len(a.data)) == s.end() {
		a.flags = veilFin
	}
	return a
}

// await waits for a change of the stream and reports whether one came before
// the timer and the end of the request. The caller holds mu.
func (s *veilSession) await(ctx context.Context, timer <-chan time.Time) bool {
	changed := s.changed
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-changed:
		return true
	case <-ctx.Done():
	case <-timer:
	}
	return false
}

// session finds the session a request is for, or begins it with its first
// request. It returns nil if there is none, and true if there is no room.
func (v *veilServer) session(r *http.Request, path string, req *veilRequest) (*veilSession, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.sessions[req.session]; s != nil {
		if s.path != path {
			return nil, false
		}
		return s, false
	}
	if req.offset != 0 || req.received != 0 || req.from != 0 || req.flags != 0 || v.ended[req.session] {
		return nil, false
	}
	select {
	case <-v.closed:
		return nil, true
	default:
	}
	from, port := v.source(r)
	source := sourceOf(from)
	most := maxPerSource
	if from.IsLoopback() {
		most = maxVeilSessions / 2 // a web server that doesn't say whom it speaks for
	}
	if len(v.sessions) >= maxVeilSessions || v.sources[source] >= most {
		return nil, true
	}
	s := &veilSession{
		veilStream: newVeilStream(v.listen.Addr(), net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, port))),
		server:     v, id: req.session, path: path, source: source,
	}
	var err error
	if s.remote, err = veilEndpoint(from, port); err != nil {
		return nil, true
	}
	s.idle = time.AfterFunc(sessionIdle, func() { v.drop(s, errSilent) })
	select {
	case v.enter <- s:
	default:
		s.idle.Stop()
		return nil, true
	}
	v.sessions[s.id] = s
	v.sources[source]++
	return s, false
}

// sourceOf is what counts as one source: an IPv4 address, or an IPv6 /56.
func sourceOf(from netip.Addr) netip.Prefix {
	bits := 32
	if from.Is6() {
		bits = 56
	}
	p, _ := from.Prefix(bits)
	return p
}

// door lets a bounded number of visitors in, and hangs up on the others.
type door struct {
	net.Listener
	most, mostFrom int

	mu   sync.Mutex
	in   int
	from map[netip.Prefix]int
}

// Accept returns the next visitor for whom there is room.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		source, mostFrom := sourceOf(peer.Addr().Unmap().WithZone("")), d.mostFrom
		if peer.Addr().IsLoopback() {
			mostFrom = d.most / 2 // a forwarder that doesn't say for whom
		}
		d.mu.Lock()
		room := d.in < d.most && d.from[source] < mostFrom
		if room {
			d.in++
			d.from[source]++
		}
		d.mu.Unlock()
		if room {
			return &visitor{Conn: c, leave: sync.OnceFunc(func() { d.leave(source) })}, nil
		}
		c.Close()
	}
}

func (d *door) leave(source netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.in--
	if d.from[source]--; d.from[source] == 0 {
		delete(d.from, source)
	}
}

// visitor is one visitor's connection.
type visitor struct {
	net.Conn
	leave func()
}

func (v *visitor) Close() error {
	v.leave()
	return v.Conn.Close()
}

// source is whom a request comes from. Behind the operator's web server that is
// what the server says: the last address of X-Forwarded-For, the others being
// the visitor's own invention.
func (v *veilServer) source(r *http.Request) (netip.Addr, uint16) {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	addr := peer.Addr().Unmap().WithZone("")
	if v.bridge.Certificate == nil {
		said := r.Header.Values("X-Forwarded-For")
		if len(said) > 0 {
			last := said[len(said)-1]
			if i := strings.LastIndexByte(last, ','); i >= 0 {
				last = last[i+1:]
			}
			if a, err := netip.ParseAddr(strings.TrimSpace(last)); err == nil {
				return a.Unmap().WithZone(""), 0
			}
		}
	}
	return addr, peer.Port()
}

// drop ends a session.
func (v *veilServer) drop(s *veilSession, why error) {
	s.mu.Lock()
	s.fail(why)
	s.mu.Unlock()
	v.forget(s)
}

// forget removes a session, and remembers that it was.
func (v *veilServer) forget(s *veilSession) {
	s.idle.Stop()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sessions[s.id] != s {
		return
	}
	delete(v.sessions, s.id)
	if v.sources[s.source]--; v.sources[s.source] == 0 {
		delete(v.sources, s.source)
	}
	if len(v.order) < maxEndedKept {
		v.order = append(v.order, s.id)
	} else {
		delete(v.ended, v.order[v.oldest])
		v.order[v.oldest] = s.id
		v.oldest = (v.oldest + 1) % maxEndedKept
	}
	v.ended[s.id] = true
}

// Close ends the stream; the session stays for a while so that the client can
// fetch what was written.
func (s *veilSession) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.mu.Unlock()
	s.veilStream.Close()
	if first {
		time.AfterFunc(sessionLinger, func() { s.server.drop(s, net.ErrClosed) })
	}
	return nil
}

func (s *veilSession) LocalMultiaddr() ma.Multiaddr {
	return s.server.addr.AppendComponent(tlsComponent)
}
func (s *veilSession) RemoteMultiaddr() ma.Multiaddr { return s.remote }

// Accept returns the next new stream.
func (v *veilServer) Accept() (manet.Conn, error) {
	select {
	case s := <-v.enter:
		return s, nil
	case <-v.closed:
		return nil, errBridgeClosed
	}
}

// Close ends the site and all streams.
func (v *veilServer) Close() error {
	v.once.Do(func() {
		close(v.closed)
		v.mu.Lock()
		sessions := v.sessions
		v.sessions = make(map[sessionID]*veilSession)
		v.mu.Unlock()
		for _, s := range sessions {
			s.idle.Stop()
			s.mu.Lock()
			s.fail(errBridgeClosed)
			s.mu.Unlock()
		}
		v.http.Close()
		<-v.served
	})
	return nil
}

// Addr is the address listened on.
func (v *veilServer) Addr() net.Addr { return v.listen.Addr() }

// Multiaddr is the address listened on, in a form that only this transport
// takes and that is nobody's bridge's.
func (v *veilServer) Multiaddr() ma.Multiaddr { return veilListenAddr(v.addr) }

// replayWindow says of numbers whether they are used for the first time, as
// RFC 4303, section 3.4.3, does.
type replayWindow struct {
	next uint64 // above the highest number used
	used uint64 // bit i: next-1-i was used
}

const replayWidth = 64

func (w *replayWindow) use(n uint64) bool {
	if n >= w.next {
		ahead := n - w.next + 1
		if ahead == 0 { // n is the last number there is
			return false
		}
		if ahead >= replayWidth {
			w.used = 0
		} else {
			w.used <<= ahead
		}
		w.used |= 1
		w.next = n + 1
		return w.next != 0
	}
	back := w.next - 1 - n
	if back >= replayWidth || w.used&(1<<back) != 0 {
		return false
	}
	w.used |= 1 << back
	return true
}
