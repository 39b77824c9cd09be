package transport

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// Patience with a network, to which round trips are added where they are known.
const (
	connectPatience = 6 * time.Second        // for TCP
	helloPatience   = 5 * time.Second        // for the answer to a hello
	nextHello       = 800 * time.Millisecond // after which another one is tried besides
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
