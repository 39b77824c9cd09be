package transport

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// The client's end. Three layers, from the network up:
//
//	veilDialer   (veil_dialer.go) what is known of each server, and TLS connections
//	             to it: which hello, how often, and when one was blocked
//	veilLink     (veil_link.go) one such connection, what it has carried, and how
//	             much more it may
//	veilCaller   (here) one stream: decides which exchange comes next, gives it to
//	             a link, and repeats what a link lost

// Patience with servers and networks. A round trip is added to each where it
// is known.
const (
	answerPatience = 1500 * time.Millisecond // for an answer that nothing delays
	maxPatience    = 8 * time.Second         // answerPatience grows where answers do come later
	streamPatience = 75 * time.Second        // without any answer the stream is broken; servers keep it for longer
	closePatience  = 5 * time.Second         // after Close, for what was written
	lastMoment     = time.Second             // of that, when the whole host closes
	minHoldTime    = 2 * time.Second         // a parked request, until it is known that they live
	maxHoldTime    = 40 * time.Second
	openHoldTime   = 500 * time.Millisecond // the first request, for the answer to its bytes
	gatherTime     = 2 * time.Millisecond   // for data to go along with a little that was written
	frugalPause    = 15 * time.Millisecond  // for data to go along with a request that would be parked
	maxBackoff     = 5 * time.Second
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
