package transport

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	utls "github.com/refraction-networking/utls"
)

// The client's end. Three layers, from the network up:
//
//	veilDialer   what is known of each server, and TLS connections to it: which
//	             hello, how often, and when one was blocked
//	veilLink     one such connection, what it has carried, and how much more it may
//	veilCaller   one stream: decides which exchange comes next, gives it to a
//	             link, and repeats what a link lost

const veilContentType = "application/octet-stream"

// Patience with servers and networks. A round trip is added to each where it
// is known.
const (
	connectPatience = 6 * time.Second         // for TCP
	helloPatience   = 5 * time.Second         // for the answer to a hello
	nextHello       = 800 * time.Millisecond  // after which another one is tried besides
	answerPatience  = 1500 * time.Millisecond // for an answer that nothing delays
	maxPatience     = 8 * time.Second         // answerPatience grows where answers do come later
	streamPatience  = 75 * time.Second        // without any answer the stream is broken; servers keep it for longer
	closePatience   = 5 * time.Second         // after Close, for what was written
	lastMoment      = time.Second             // of that, when the whole host closes
	minHoldTime     = 2 * time.Second         // a parked request, until it is known that they live
	maxHoldTime     = 40 * time.Second
	openHoldTime    = 500 * time.Millisecond // the first request, for the answer to its bytes
	gatherTime      = 2 * time.Millisecond   // for data to go along with a little that was written
	frugalPause     = 15 * time.Millisecond  // for data to go along with a request that would be parked
	maxBackoff      = 5 * time.Second
)

// How much is on its way at once.
const (
	maxLanes    = 4        // exchanges with data in each direction
	maxEarly    = 16       // answers that came before what belongs in front of them
	firstChunk  = 8 << 10  // of data in one exchange; grows while they are quick
	minChunk    = 512      //
	quickAnswer = 400      // milliseconds under which an exchange was quick
	slowAnswer  = 1500     // and over which it was slow
	slowestLine = 12 << 10 // bytes per second, until a rate was seen
)

// Lessons.
const (
	lessonLife    = 24 * time.Hour  // then a network is tried again as if new
	suspicionLife = 2 * time.Minute // of a lesson that only one connection taught
	gapLife       = 10 * time.Minute
	helloBlocked  = time.Minute // a hello that got no answer comes last for so long
	helloTrusted  = 30 * time.Second
	carriedLife   = time.Minute
	maxAccidents  = 3
	certainAfter  = 4  // connections that end well with less on them, and a suspicion is none
	firstRaise    = 32 // of them, and more is tried
	firstGap      = 2500 * time.Millisecond
	maxGap        = 30 * time.Second
	packetBytes   = 1400
	leastPackets  = 8
	leastBytes    = 6 << 10
)

// veilDialer makes streams to bridges.
type veilDialer struct {
	tcp    DialFunc
	hellos []Hello
	client VeilClient

	mu      sync.Mutex
	servers map[ServerKey]*veilSite
	callers map[*veilCaller]struct{}
}

// veilSite is what is known of one server.
type veilSite struct {
	key    ServerKey
	client *VeilClient

	mu        sync.Mutex
	since     time.Time // when we came to this network
	lesson    Lesson
	gapAt     time.Time // when a hello was last found to come too often
	suspected time.Time // when the first connection died; zero if none, or if it is certain
	// Of connections that ended well in the last while: the most they carried.
	carriedPackets, carriedBytes int
	carriedAt                    time.Time
	accidents                    int  // deaths in a row that the figures above contradict
	retired                      int  // connections that ended well since the lesson changed
	patience                     int  // how many of them it takes to try more
	raised                       bool // the lesson was changed to try more

	used     map[string]time.Time // when each hello was last sent
	answered map[string]time.Time // and when it last got an answer
	blocked  map[string]time.Time // and when it last got none
}

func newVeilDialer(client VeilClient, reach Reach) *veilDialer {
	d := &veilDialer{tcp: client.DialTCP, hellos: client.Hellos, client: client, servers: make(map[ServerKey]*veilSite), callers: make(map[*veilCaller]struct{})}
	if len(d.hellos) == 0 {
		d.hellos = BuiltInHellos()
	}
	if d.tcp == nil {
		dialer := reachDialer(reach)
		dialer.KeepAlive = -1
		d.tcp = dialer.DialContext
	}
	return d
}

// site returns what is known of a server.
func (d *veilDialer) site(v VeilAddr) *veilSite {
	key := ServerKey(sha256.Sum256([]byte(v.hostPort() + "|" + v.ServerName())))
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.servers[key]
	if s == nil {
		s = &veilSite{key: key, client: &d.client}
		s.begin()
		d.servers[key] = s
	}
	return s
}

// moved begins with every server what is known of it on this network: the last one
// may have cut connections that this one does not, and those that the move itself
// cut teach nothing.
func (d *veilDialer) moved() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.servers {
		s.mu.Lock()
		s.begin()
		s.mu.Unlock()
	}
}

// begin takes what was learnt of the server on the network we are in. The caller
// holds mu.
func (s *veilSite) begin() {
	s.lesson, s.since = Lesson{}, time.Now()
	if load := s.client.Memory.Load; load != nil {
		s.lesson = load(s.key)
	}
	s.gapAt, s.suspected = s.since, time.Time{}
	s.carriedPackets, s.carriedBytes, s.carriedAt = 0, 0, time.Time{}
	s.accidents, s.retired, s.patience, s.raised = 0, 0, firstRaise, false
	s.used, s.answered, s.blocked = make(map[string]time.Time), make(map[string]time.Time), make(map[string]time.Time)
}

// now returns the lesson in force.
func (s *veilSite) now() Lesson {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lesson.At.IsZero() {
		return s.lesson
	}
	if time.Since(s.lesson.At) > lessonLife {
		s.lesson = Lesson{Hello: s.lesson.Hello}
	}
	if !s.suspected.IsZero() && time.Since(s.suspected) > suspicionLife {
		s.lesson.Packets, s.lesson.Bytes, s.suspected = 0, 0, time.Time{}
	}
	if s.lesson.Gap > 0 && time.Since(s.gapAt) > gapLife {
		s.lesson.Gap = 0
	}
	return s.lesson
}

// learn changes the lesson and keeps it. The caller holds mu.
func (s *veilSite) learn(change func(*Lesson)) {
	old := s.lesson
	change(&s.lesson)
	if s.lesson == old {
		return
	}
	s.lesson.At = time.Now()
	if s.client.Memory.Save != nil && s.suspected.IsZero() {
		s.client.Memory.Save(s.key, s.lesson)
	}
}

// died takes note of a connection that worked and fell silent for good while
// others went on. If others carried much more lately it was an accident, unless
// accidents are all there is. The first is suspicious and the second certain. born
// is when it was dialled.
func (s *veilSite) died(born time.Time, packets, received int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if born.Before(s.since) {
		return // another network's
	}
	if time.Since(s.carriedAt) > carriedLife {
		s.carriedPackets, s.carriedBytes = 0, 0
	}
	if packets < s.carriedPackets*2/3 && received < s.carriedBytes*2/3 {
		if s.accidents++; s.accidents < maxAccidents {
			return
		}
		s.carriedPackets, s.carriedBytes = packets, received
	}
	s.accidents = 0
	certain := s.lesson.Packets > 0
	if s.suspected = time.Now(); certain {
		s.suspected = time.Time{}
	}
	if s.raised {
		s.raised = false
		s.patience *= 2
	}
	s.retired = 0
	s.learn(func(l *Lesson) {
		if certain { // it is to be kept, changed or not
			l.At = time.Now()
		}
		if l.Packets == 0 || packets < l.Packets {
			l.Packets = max(packets, leastPackets)
		}
		if received >= leastBytes && (l.Bytes == 0 || received < l.Bytes) {
			l.Bytes = received // fewer are nothing to cut for
		}
	})
}

// carried takes note of a connection that ended well. When many did, it is
// tried whether they may carry more.
func (s *veilSite) carried(packets, received int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.carriedAt) > carriedLife {
		s.carriedPackets, s.carriedBytes = 0, 0
	}
	s.carriedAt = time.Now()
	s.carriedPackets = max(s.carriedPackets, packets)
	s.carriedBytes = max(s.carriedBytes, received)
	if s.lesson.Packets == 0 {
		return
	}
	s.retired++
	if !s.suspected.IsZero() && s.retired >= certainAfter {
		s.suspected = time.Time{}
		s.learn(func(l *Lesson) { l.At = time.Now() })
	}
	if s.retired >= s.patience {
		s.retired = 0
		s.raised = true
		s.learn(func(l *Lesson) { l.Packets, l.Bytes = l.Packets*5/4, l.Bytes*5/4 })
	}
}

// order returns the hellos in the order to try, and how long to wait before
// the first.
func (s *veilSite) order(hellos []Hello) ([]Hello, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	list := slices.Clone(hellos)
	ready := func(h Hello) time.Duration { return max(0, s.used[h.Name].Add(s.lesson.Gap).Sub(now)) }
	bad := func(h Hello) int {
		if b := s.blocked[h.Name]; b.After(s.answered[h.Name]) && now.Sub(b) < helloBlocked {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b Hello) int {
		known := func(h Hello) int {
			if h.Name == s.lesson.Hello {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(bad(a), bad(b)), cmp.Compare(ready(a), ready(b)), cmp.Compare(known(a), known(b)))
	})
	return list, ready(list[0])
}

// sending takes note that a hello goes out.
func (s *veilSite) sending(h Hello) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[h.Name] = time.Now()
}

// got takes note that a hello was answered.
func (s *veilSite) got(h Hello) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered[h.Name] = time.Now()
	if bad := s.blocked[s.lesson.Hello]; s.lesson.Hello == "" || bad.After(s.answered[s.lesson.Hello]) {
		s.learn(func(l *Lesson) { l.Hello = h.Name })
	}
}

// silent takes note that a hello wasn't answered. If it was a moment ago, it
// comes too often.
func (s *veilSite) silent(h Hello) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.answered[h.Name]) < helloTrusted {
		s.gapAt = time.Now()
		s.learn(func(l *Lesson) { l.Gap = min(max(2*l.Gap, firstGap), maxGap) })
		return
	}
	s.blocked[h.Name] = time.Now()
}

// link opens a TLS connection, trying one hello after the other. A hello that
// gets no answer soon is left to go on while the next is tried.
func (d *veilDialer) link(ctx context.Context, v VeilAddr, frugal bool) (*veilLink, error) {
	site := d.site(v)
	hellos, wait := site.order(d.hellos)
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the attempts that lost
	type result struct {
		link  *veilLink
		hello Hello
		err   error
	}
	results := make(chan result, len(hellos))
	next := time.NewTimer(0)
	defer next.Stop()
	running := 0
	defer func() {
		go func() { // what was won too late
			for range running {
				if r := <-results; r.link != nil {
					r.link.close()
				}
			}
		}()
	}()
	var unanswered []Hello // sent, and nothing heard
	var failed error
	for {
		select {
		case <-ctx.Done():
			return nil, cmp.Or(failed, ctx.Err())
		case <-next.C:
			if len(hellos) == 0 {
				continue
			}
			h := hellos[0]
			hellos = hellos[1:]
			running++
			connected := make(chan time.Duration, 1)
			site.sending(h)
			go func() {
				l, err := d.attempt(ctx, v, h, frugal, connected)
				results <- result{l, h, err}
			}()
			select {
			case rtt := <-connected:
				unanswered = append(unanswered, h)
				next.Reset(nextHello + 4*rtt)
			case r := <-results: // couldn't even connect, or was very quick
				results <- r
			case <-ctx.Done():
			}
		case r := <-results:
			running--
			if r.err == nil {
				for _, h := range unanswered {
					if h.Name != r.hello.Name {
						site.silent(h)
					}
				}
				site.got(r.hello)
				return r.link, nil
			}
			failed = r.err
			var blocked *blockedError
			switch {
			case !errors.As(r.err, &blocked):
				return nil, r.err // no other hello changes that
			case len(hellos) > 0:
				next.Reset(0)
			case running == 0:
				for _, h := range unanswered {
					site.silent(h)
				}
				return nil, r.err
			}
		}
	}
}

// blockedError says that a server was reached and a hello got no answer.
type blockedError struct{ err error }

func (e *blockedError) Error() string { return fmt.Sprintf("no answer to the hello: %v", e.err) }
func (e *blockedError) Unwrap() error { return e.err }

// attempt opens a connection with one hello.
func (d *veilDialer) attempt(ctx context.Context, v VeilAddr, h Hello, frugal bool, connected chan<- time.Duration) (*veilLink, error) {
	start := time.Now()
	dialCtx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	raw, err := d.tcp(dialCtx, fmt.Sprintf("tcp%d", v.Family), v.hostPort())
	if err != nil {
		return nil, fmt.Errorf("connect to the bridge: %w", err)
	}
	rtt := time.Since(start)
	connected <- rtt
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetKeepAlive(false) // each probe would count against a flow
	}
	m := &meter{Conn: raw, packets: 3}
	helloCtx, cancel := context.WithTimeout(ctx, helloPatience+4*rtt)
	defer cancel()
	conn, err := h.handshake(helloCtx, m, v, d.client.Roots, frugal)
	if err != nil {
		raw.Close()
		if !errors.Is(err, errWrongCertificate) {
			err = &blockedError{err} // silence, a reset, or an alert: another hello may do
		}
		return nil, err
	}
	return newVeilLink(conn, m, v, rtt)
}

// meter counts what a TCP connection carries, and sends the last message of
// the TLS handshake together with the first request, as browsers do.
type meter struct {
	net.Conn

	mu       sync.Mutex // never held while the network is waited for
	packets  int        // estimated, both ways
	received int
	acked    uint64    // bytes of ours that the other end's TCP has
	heard    time.Time // when something last came, or went through

	writing sync.Mutex // one write after the other; a dead connection may hold it for long
	writes  int
	held    []byte // not yet sent
	flush   *time.Timer
}

// flushAfter bounds how long the end of a handshake waits for a request.
const flushAfter = 20 * time.Millisecond

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > 0 {
		full := (n + packetBytes - 1) / packetBytes
		m.packets += full + (full+1)/2 // and their acknowledgements
		m.received += n
		m.heard = time.Now()
	}
	return n, err
}

func (m *meter) Write(p []byte) (int, error) {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.writes++
	if m.writes == 2 { // the first is the hello
		m.held = slices.Clone(p)
		m.flush = time.AfterFunc(flushAfter, func() {
			m.writing.Lock()
			defer m.writing.Unlock()
			_ = m.send(nil) // the next write says what is wrong
		})
		return len(p), nil
	}
	if err := m.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// send writes p behind what was held. The caller holds writing.
func (m *meter) send(p []byte) error {
	if len(m.held) > 0 {
		p = append(m.held, p...)
		m.held = nil
		m.flush.Stop()
	}
	if len(p) == 0 {
		return nil
	}
	full := (len(p) + packetBytes - 1) / packetBytes
	m.mu.Lock()
	m.packets += full + (full+1)/2
	m.mu.Unlock()
	_, err := m.Conn.Write(p)
	return err
}

// read returns the packets carried, an estimate, the bytes received, and when
// the last of them came, or the last of ours were acknowledged: on a slow line much is
// on its way for long, and a flow that was cut acknowledges nothing.
func (m *meter) read() (packets, received int, heard time.Time) {
	acked, at := acknowledged(m.Conn)
	m.mu.Lock()
	defer m.mu.Unlock()
	if acked > m.acked {
		m.acked = acked
		if at.After(m.heard) {
			m.heard = at
		}
	}
	return m.packets, m.received, m.heard
}

// veilLink is one TLS connection to a bridge.
type veilLink struct {
	meter *meter
	http  *http.ClientConn
	url   string
	many  bool // HTTP/2: carries many exchanges at once
	rtt   time.Duration
	born  time.Time

	// Guarded by the caller's mu.
	inFlight int
	served   int
	doubt    chan struct{} // closed when the link seems dead
	dead     bool
}

func newVeilLink(conn *utls.UConn, m *meter, v VeilAddr, rtt time.Duration) (*veilLink, error) {
	l := &veilLink{
		meter: m, rtt: rtt, born: time.Now().Add(-rtt), doubt: make(chan struct{}),
		url:  (&url.URL{Scheme: "https", Host: v.authority(), Path: "/" + v.Path}).String(),
		many: conn.ConnectionState().NegotiatedProtocol == "h2",
	}
	// Package http takes HTTP/2 over a connection that it doesn't know to be TLS
	// if it is told that there is none.
	var protocols http.Protocols
	protocols.SetHTTP1(!l.many)
	protocols.SetUnencryptedHTTP2(l.many)
	t := &http.Transport{
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		Protocols:          &protocols,
		DisableCompression: true,
	}
	var err error
	l.http, err = t.NewClientConn(context.Background(), "http", v.hostPort())
	if err != nil {
		conn.Close()
		return nil, err
	}
	return l, nil
}

func (l *veilLink) close() { l.http.Close() }

// room returns how many bytes of data one more exchange on the link may carry
// in both directions together, or 0 if the link has carried enough.
func (l *veilLink) room(lesson Lesson) int {
	if lesson.Packets == 0 {
		return maxVeilData
	}
	packets, received, _ := l.meter.read()
	// Three quarters of what was once too much; an exchange costs two packets
	// and their acknowledgements, and its data as much again as its length.
	left := lesson.room(packets, received)
	if l.served == 0 {
		return max(left, minChunk)
	}
	if left < minChunk {
		return 0
	}
	return left
}

// room is how much data fits on a connection that has carried something.
func (l Lesson) room(packets, received int) int {
	left := (l.Packets*3/4 - packets - 4) * packetBytes * 2 / 3
	if l.Bytes > 0 {
		left = min(left, l.Bytes*3/4-received)
	}
	return min(left-maxVeilPad, maxVeilData)
}

// errNotBridge says that the site answered as it does to everybody.
var errNotBridge = errors.New("the web site at the bridge's address knows nothing of a bridge: ask for a new invite")

// errBridgeBusy says that a web server in front of a bridge can't reach it now.
var errBridgeBusy = errors.New("the bridge's web server is busy")

// roundTrip carries out one exchange.
func (l *veilLink) roundTrip(ctx context.Context, req *veilRequest) (*veilAnswer, error) {
	body := req.marshal()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(body))
	if err != nil {
		return nil, errNotVeil // the cause repeats the path
	}
	r.Header.Set("Content-Type", veilContentType)
	r.Header.Set("Accept", "*/*")
	r.Header.Set("User-Agent", "Mozilla/5.0")
	resp, err := l.http.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK && resp.Header.Get("Content-Type") == veilContentType:
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusBadGateway,
		resp.StatusCode == http.StatusServiceUnavailable, resp.StatusCode == http.StatusGatewayTimeout:
		return nil, errBridgeBusy
	default:
		return nil, errNotBridge
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, answerHead+maxVeilData+maxVeilPad+1))
	if err != nil {
		return nil, err
	}
	a := new(veilAnswer)
	if err := a.unmarshal(b); err != nil {
		return nil, errNotBridge
	}
	return a, nil
}

// veilCaller is the client's end of a stream.
type veilCaller struct {
	*veilStream
	dialer            *veilDialer
	site              *veilSite
	addr              VeilAddr
	remoteMA, localMA ma.Multiaddr
	cancel            context.CancelFunc
	done              chan struct{}

	// Guarded by the stream's mu.
	id        sessionID
	number    uint64
	opened    bool      // the server knows the session
	sent      uint64    // offset behind what requests carry
	gathered  time.Time // when a little that was written leaves; zero: nothing was
	peerLimit uint64    // offset that the server takes bytes up to
	asked     uint64    // offset behind what requests ask for
	written   uint64    // bytes the server is known to have for us
	writtenAt time.Time
	early     map[uint64]*veilAnswer
	pushes    int
	pulls     int
	polls     int       // at most one
	pollLink  *veilLink // that carries it
	pollAt    time.Time
	finished  bool // our end is on its way

	handshake struct{ packets, received int } // what it took of the last link
	links     []*veilLink
	dialling  int
	parallel  bool // links carry one exchange at a time
	failures  int
	retryAt   time.Time
	lastGood  time.Time
	lastAlive time.Time // when an exchange or a handshake last worked
	closeBy   time.Time
	patience  time.Duration
	hold      time.Duration
	chunk     int
	rate      int // bytes per second, the best seen lately
	rtt       time.Duration
	flying    int // bytes in all exchanges
}

// dial begins a stream. It returns when a TLS connection is there and the
// certificate was found to be the bridge's; the first exchange comes with the
// first bytes written. The context ends the dialling, not the stream.
func (d *veilDialer) dial(ctx context.Context, v VeilAddr) (*veilCaller, error) {
	site := d.site(v)
	l, err := d.link(ctx, v, site.now().Packets > 0)
	if err != nil {
		return nil, err
	}
	c := &veilCaller{
		veilStream: newVeilStream(l.meter.LocalAddr(), l.meter.RemoteAddr()),
		dialer:     d, site: site, addr: v, remoteMA: somewhere, localMA: somewhere,
		done: make(chan struct{}), early: make(map[uint64]*veilAnswer),
		links: []*veilLink{l}, parallel: !l.many, lastGood: time.Now(),
		peerLimit: veilBuffer, patience: answerPatience, hold: minHoldTime, chunk: firstChunk, rtt: l.rtt,
	}
	c.handshake.packets, c.handshake.received, _ = l.meter.read()
	if at, ok := l.meter.LocalAddr().(*net.TCPAddr); ok {
		if a, err := veilEndpoint(at.AddrPort().Addr().Unmap().WithZone(""), at.AddrPort().Port()); err == nil {
			c.localMA = a
		}
	}
	if _, err := rand.Read(c.id[:]); err != nil {
		l.close()
		return nil, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	d.mu.Lock()
	d.callers[c] = struct{}{}
	d.mu.Unlock()
	go c.run(run)
	return c, nil
}

// lag is the longest round trip to any bridge that we are connected to.
func (d *veilDialer) lag() (longest time.Duration) {
	d.mu.Lock()
	callers := slices.Collect(maps.Keys(d.callers))
	d.mu.Unlock()
	for _, c := range callers {
		c.mu.Lock()
		longest = max(longest, c.rtt)
		c.mu.Unlock()
	}
	return longest
}

// close ends all streams. Those that were closed have a moment to say so.
func (d *veilDialer) close() {
	d.mu.Lock()
	callers := slices.Collect(maps.Keys(d.callers))
	d.mu.Unlock()
	moment, cancel := context.WithTimeout(context.Background(), lastMoment)
	defer cancel()
	for _, c := range callers {
		c.Close()
	}
	for _, c := range callers {
		select {
		case <-c.done:
		case <-moment.Done():
			c.mu.Lock()
			c.fail(net.ErrClosed)
			c.mu.Unlock()
			<-c.done
		}
	}
}

func (c *veilCaller) LocalMultiaddr() ma.Multiaddr  { return c.localMA }
func (c *veilCaller) RemoteMultiaddr() ma.Multiaddr { return c.remoteMA }

// cause is why the stream broke, nil if it didn't.
func (c *veilCaller) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken
}

// run is the engine: it starts exchanges until the stream has ended.
func (c *veilCaller) run(ctx context.Context) {
	defer close(c.done)
	var exchanges sync.WaitGroup
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		c.mu.Lock()
		changed := c.changed
		wait, over := c.step(ctx, &exchanges)
		c.mu.Unlock()
		if over {
			break
		}
		timer.Reset(wait)
		select {
		case <-changed:
		case <-timer.C:
		}
	}
	c.cancel()
	c.mu.Lock()
	c.fail(net.ErrClosed)
	for _, l := range c.links {
		l.close()
	}
	c.mu.Unlock()
	exchanges.Wait()
	c.mu.Lock()
	for _, l := range c.links { // dialled meanwhile
		l.close()
	}
	c.links = nil
	c.mu.Unlock()
	c.dialer.mu.Lock()
	delete(c.dialer.callers, c)
	c.dialer.mu.Unlock()
}

// exchangeKind is what an exchange is for.
type exchangeKind uint8

const (
	pushing exchangeKind = iota // carries data, or our end; the first waits for what is said to that
	pulling                     // asks for data that is there
	polling                     // asks for data to come
)

// exchange is one request under way.
type exchange struct {
	req       veilRequest
	kind      exchangeKind
	abandoned bool // off the books; an answer is still welcome
	started   time.Time
	size      int
}

// step starts the exchanges there is reason for, and returns after what time
// to look again and whether the stream has ended. The caller holds mu.
func (c *veilCaller) step(ctx context.Context, exchanges *sync.WaitGroup) (time.Duration, bool) {
	now := time.Now()
	if c.broken != nil || c.ended {
		return 0, true
	}
	if now.Sub(c.lastGood) > streamPatience {
		c.fail(errSilent)
		return 0, true
	}
	if c.closed {
		if c.closeBy.IsZero() {
			c.closeBy = now.Add(closePatience)
		}
		if now.After(c.closeBy) {
			return 0, true
		}
	}
	wait := time.Second
	if d := c.retryAt.Sub(now); d > 0 {
		return min(wait, d), false
	}
	lesson := c.site.now()
	chunk := c.chunk
	if lesson.Packets > 0 {
		chunk = min(chunk, max(minChunk, lesson.room(c.handshake.packets, c.handshake.received)))
	}
	start := func(x *exchange) {
		x.req.session = c.id
		x.started = now
		x.size = len(x.req.data)
		if x.kind == pulling {
			x.size += int(x.req.most)
		}
		c.flying += x.size
		exchanges.Go(func() { c.exchange(ctx, x) })
	}
	// What an answer that came late brought isn't sent, or asked for, again.
	c.sent = max(c.sent, c.base)
	c.asked = max(c.asked, c.got)

	// Until the server knows the session there is one request, the first.
	alone := func() bool { return !c.opened && c.pushes+c.pulls+c.polls > 0 }

	// Who writes a little mostly writes a little more at once: a request for each
	// would be padding for the most part.
	gathering := false
	if n := c.end() - c.sent; n > 0 && n < maxVeilPad && !c.closed {
		if c.gathered.IsZero() {
			c.gathered = now.Add(gatherTime)
		}
		if d := c.gathered.Sub(now); d > 0 {
			gathering, wait = true, min(wait, d)
		}
	}
	for c.pushes < maxLanes && !alone() && !gathering {
		data := c.slice(c.sent, int(min(uint64(chunk), max(c.peerLimit, c.sent)-c.sent)))
		x := &exchange{kind: pushing, req: veilRequest{offset: c.sent, data: data}}
		if !c.opened && !c.closed && c.sent+uint64(len(data)) == c.end() {
			// What it brings takes the place of padding.
			x.req.most, x.req.hold = maxVeilPad, uint32(openHoldTime.Milliseconds())
		}
		if c.closed && c.opened && !c.finished && c.sent+uint64(len(data)) == c.end() {
			x.req.flags = veilFin | veilAbort
			c.finished = true
		}
		if len(data) == 0 && x.req.flags == 0 {
			break
		}
		c.sent += uint64(len(data))
		c.gathered = time.Time{}
		c.pushes++
		start(x)
	}
	if c.closed {
		if !c.opened && len(c.out) == 0 {
			return 0, true // the server never heard of it
		}
		return min(wait, c.closeBy.Sub(now)), false
	}
	room := c.limit()
	// A parked request brings what has come to be there, unless it is lost.
	if c.polls > 0 && c.asked < c.written {
		at := c.writtenAt
		if c.pollLink != nil {
			if _, _, heard := c.pollLink.meter.read(); heard.After(at) {
				at = heard // it is coming, slowly
			}
		}
		at = at.Add(c.patience/4 + 2*c.rtt)
		if now.Before(at) {
			return min(wait, at.Sub(now)), false
		}
	}
	for c.opened && c.pulls < maxLanes && (c.pulls == 0 || c.pulls+len(c.early) < maxEarly) && c.asked < min(c.written, room) {
		n := min(uint64(chunk), c.written-c.asked, room-c.asked)
		c.pulls++
		start(&exchange{kind: pulling, req: veilRequest{from: c.asked, most: uint32(n)}})
		c.asked += n
	}
	if c.opened && c.polls == 0 && c.pulls == 0 && c.asked < room && !c.finned {
		if lesson.Packets > 0 && now.Before(c.pollAt) {
			return min(wait, c.pollAt.Sub(now)), false
		}
		c.polls++
		start(&exchange{kind: polling, req: veilRequest{
			from: c.asked, most: uint32(min(uint64(max(chunk, minChunk)), room-c.asked)), hold: uint32(c.hold.Milliseconds()),
		}})
	}
	return wait, false
}

// exchange carries out one exchange, from finding a link to settling what came
// of it.
func (c *veilCaller) exchange(ctx context.Context, x *exchange) {
	link, err := c.take(ctx, x)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.abandon(x)
		c.failed(err)
		return
	}
	// What stands in a request is what is true when it leaves.
	c.mu.Lock()
	if x.kind == polling {
		c.pollLink = link
	}
	x.req.number = c.number
	c.number++
	x.req.received = c.got
	if x.req.from < c.got {
		x.req.from = c.got
	}
	x.req.written = c.end()
	x.req.padding = padTo(requestHead + len(x.req.data))
	x.started = time.Now()
	patience := c.patience + 4*c.rtt + time.Duration(float64(c.flying+requestHead)/float64(max(c.rate/4, slowestLine))*float64(time.Second))
	c.mu.Unlock()

	type outcome struct {
		answer *veilAnswer
		err    error
	}
	outcomes := make(chan outcome, 1)
	go func() {
		a, err := link.roundTrip(ctx, &x.req)
		outcomes <- outcome{a, err}
	}()

	due := x.started // of a first push the patience is longer than its hold
	if x.kind == polling {
		due = due.Add(time.Duration(x.req.hold) * time.Millisecond)
	}
	timer := time.NewTimer(time.Until(due) + patience)
	defer timer.Stop()
	doubt := link.doubt
	for {
		select {
		case o := <-outcomes:
			c.settle(x, link, o.answer, o.err)
			return
		case <-doubt:
			// Another exchange found the link dead: this one is repeated elsewhere.
			doubt = nil
			c.mu.Lock()
			c.abandon(x)
			c.mu.Unlock()
			timer.Reset(patience)
		case <-timer.C:
			_, _, heard := link.meter.read()
			from := due
			if heard.After(from) {
				from = heard // it is coming, slowly
			}
			if quiet := time.Since(from); quiet < patience && time.Since(due) < 10*patience {
				timer.Reset(patience - quiet)
				continue
			}
			c.mu.Lock()
			if !x.abandoned {
				if !isClosed(link.doubt) {
					close(link.doubt)
					c.chunk = max(c.chunk/4, minChunk) // the next should get further
				}
				doubt = nil
				c.abandon(x)
				c.mu.Unlock()
				timer.Reset(patience)
				continue
			}
			c.bury(link, x.started)
			c.mu.Unlock()
			link.close()
			<-outcomes
			c.mu.Lock()
			link.inFlight--
			c.wake()
			c.mu.Unlock()
			return
		}
	}
}

// bury gives up a link. It was the network's doing if the link had worked and
// others worked later. The caller holds mu.
func (c *veilCaller) bury(l *veilLink, since time.Time) {
	if l.dead {
		return
	}
	c.remove(l)
	if c.lastAlive.After(since) {
		packets, received, _ := l.meter.read()
		c.site.died(l.born, packets, received)
	}
	if c.hold > minHoldTime {
		c.hold = max(c.hold/2, minHoldTime)
	}
}

// remove gives no more exchanges to a link. The caller holds mu.
func (c *veilCaller) remove(l *veilLink) {
	l.dead = true
	c.links = slices.DeleteFunc(c.links, func(other *veilLink) bool { return other == l })
}

// settle takes in what came of an exchange.
func (c *veilCaller) settle(x *exchange, l *veilLink, a *veilAnswer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.wake()
	l.inFlight--
	late := x.abandoned
	if err != nil {
		c.abandon(x)
		switch {
		case errors.Is(err, errNotBridge):
			// A session that is over, or a request that came too late to matter.
			if !late {
				c.fail(err)
			}
		case errors.Is(err, errBridgeBusy):
			c.failed(err)
		default:
			// Cut off loudly: nothing to find out, and the next carries less.
			if !l.dead && x.size > 0 {
				c.chunk = max(c.chunk/2, minChunk)
			}
			if !l.dead && l.served == 0 && !late {
				c.failed(err)
			}
			c.remove(l)
			l.close()
		}
		return
	}
	took := time.Since(x.started)
	l.served++
	c.opened = true
	c.failures = 0
	c.lastGood = time.Now()
	c.lastAlive = c.lastGood
	if late {
		c.patience = min(c.patience*3/2, maxPatience)
	}
	c.learn(x, a, took, late)
	if a.flags&veilAbort != 0 {
		if c.finished {
			c.ended = true
		} else {
			c.fail(errPeerLeft)
		}
		c.finish(x)
		return
	}
	if !c.acknowledged(a.accepted) || a.offset != x.req.from || len(a.data) > int(x.req.most) || a.offset+uint64(len(a.data)) > a.written {
		c.fail(errNotBridge)
		return
	}
	c.finish(x)
	c.peerLimit = max(c.peerLimit, a.limit)
	if a.written > c.written {
		c.written, c.writtenAt = a.written, time.Now()
	}
	end := a.offset + uint64(len(a.data))
	switch x.kind {
	case pushing:
		if a.accepted < x.req.offset+uint64(len(x.req.data)) {
			c.sent = max(c.base, min(c.sent, a.accepted)) // some of it wasn't taken
		}
		c.asked = max(c.asked, end)
	case pulling:
		if len(a.data) < int(x.req.most) {
			c.asked = max(c.got, min(c.asked, end))
		}
	case polling:
		c.asked = max(c.asked, end)
		if len(a.data) > 0 {
			c.pollAt = time.Now().Add(frugalPause)
		}
	}
	switch {
	case x.req.most == 0:
	case a.offset > c.got && len(c.early) < maxEarly:
		c.early[a.offset] = a // one before it is still on its way
	case a.offset > c.got:
		c.asked = max(c.got, min(c.asked, a.offset)) // no room: it is asked for again
	default:
		c.arrived(a.offset, a.data, a.flags&veilFin != 0)
	}
	for again := true; again; {
		again = false
		for at, e := range c.early {
			if at <= c.got {
				delete(c.early, at)
				c.arrived(at, e.data, e.flags&veilFin != 0)
				again = true
			}
		}
	}
}

// finish takes an exchange off the books. The caller holds mu.
func (c *veilCaller) finish(x *exchange) {
	if x.abandoned {
		return
	}
	x.abandoned = true
	c.flying -= x.size
	switch x.kind {
	case pushing:
		c.pushes--
	case pulling:
		c.pulls--
	case polling:
		c.polls--
	}
}

// abandon does that for one that brought nothing: its bytes go out, or are
// asked for, again. The caller holds mu.
func (c *veilCaller) abandon(x *exchange) {
	if x.abandoned {
		return
	}
	c.finish(x)
	c.wake()
	switch x.kind {
	case pushing:
		c.sent = max(c.base, min(c.sent, x.req.offset))
		c.finished = false
	case pulling:
		c.asked = max(c.got, min(c.asked, x.req.from))
	case polling:
	}
}

// learn adapts to how long an exchange took. The caller holds mu.
func (c *veilCaller) learn(x *exchange, a *veilAnswer, took time.Duration, late bool) {
	bytes := len(x.req.data) + len(a.data)
	if x.kind == polling {
		if len(a.data) == 0 && took >= time.Duration(x.req.hold)*time.Millisecond {
			c.hold = min(c.hold*2, maxHoldTime)
		}
		return
	}
	if bytes < minChunk {
		if !late && (x.req.hold == 0 || len(a.data) > 0) {
			c.rtt = (3*c.rtt + took) / 4
		}
		return
	}
	ms := took.Milliseconds()
	switch {
	case ms < quickAnswer && bytes >= c.chunk/2:
		c.chunk = min(c.chunk*2, maxVeilData)
	case ms > slowAnswer && c.chunk > firstChunk: // smaller ones would be padding for the most part
		c.chunk = max(c.chunk/2, firstChunk)
	}
	if bytes >= 4<<10 {
		c.rate = max(c.rate*7/8, int(float64(bytes)/took.Seconds()))
	}
}

// failed makes the next attempt wait. The caller holds mu.
func (c *veilCaller) failed(err error) {
	if errors.Is(err, errWrongCertificate) {
		c.fail(err)
		return
	}
	c.failures++
	if c.failures > 1 {
		c.retryAt = time.Now().Add(min(100*time.Millisecond<<min(c.failures-2, 6), maxBackoff))
	}
	c.wake()
}

// take finds a link for an exchange, or dials one.
func (c *veilCaller) take(ctx context.Context, x *exchange) (*veilLink, error) {
	for {
		lesson := c.site.now()
		c.mu.Lock()
		if c.broken != nil {
			defer c.mu.Unlock()
			return nil, c.broken
		}
		var idle []*veilLink
		for _, l := range c.links {
			lost := l.http.Err() != nil || isClosed(l.doubt)
			busy := l.inFlight > 0 && (!l.many || lesson.Packets > 0)
			need, room := len(x.req.data)+int(x.req.most), l.room(lesson)
			if x.kind == polling && room < need && room >= packetBytes {
				need = room // it takes what it gets
			}
			if !lost && !busy && (need <= room || l.served == 0) {
				if x.kind == polling {
					x.req.most = uint32(need)
				}
				l.inFlight++
				c.mu.Unlock()
				return l, nil
			}
			if l.inFlight == 0 {
				idle = append(idle, l)
			}
		}
		for _, l := range idle { // has carried enough
			c.remove(l)
			defer l.close()
			if l.served > 0 && !isClosed(l.doubt) {
				packets, received, _ := l.meter.read()
				c.site.carried(packets, received)
			}
		}
		most := 1
		if c.parallel || lesson.Packets > 0 {
			most = maxLanes + 1
		}
		if c.dialling >= most {
			changed := c.changed
			c.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			continue
		}
		c.dialling++
		c.mu.Unlock()
		l, err := c.dialer.link(ctx, c.addr, lesson.Packets > 0)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.dialling--
		c.wake()
		if err != nil {
			return nil, err
		}
		c.parallel = !l.many
		c.lastAlive = time.Now()
		c.handshake.packets, c.handshake.received, _ = l.meter.read()
		l.inFlight++
		c.links = append(c.links, l)
		return l, nil
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
