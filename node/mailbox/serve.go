package mailbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/mailbox"
)

// A stream, from opening to end:
//
//  1. It is counted, for its peer and for its prefix.
//  2. Hello.
//  3. One goroutine reads requests, as many as may wait; another meets them in
//     their order. Deposits that have arrived together share a commit.
//  4. Every request is checked in the order source, draining, size, tag,
//     quotas, so that only the last two depend on what is kept here.
//  5. A Collect that finds nothing waits until a deposit wakes it, its time is
//     over, or another request follows.

const (
	// A write of which writePiece bytes take longer than writeTime ends the
	// stream: the slowest link that works has 1 kB/s.
	writeTime  = 15 * time.Second
	writePiece = 16 << 10
	// turnTime bounds the whole of an answer: a small page on that slowest link.
	turnTime = 3 * time.Minute
	// A page is a small one unless the page before it was taken quickly: who reads
	// slowly holds little memory.
	quickly = 5 * time.Second
	// lengthPeek is how many bytes show how long a frame will be: no request
	// is shorter.
	lengthPeek = 3
)

// stream is one client's stream.
type stream struct {
	s       *Service
	net     network.Stream
	in      *transport.Reader
	who     *visitor
	nonce   mailbox.Nonce
	arrived chan request  // closed when reading has ended
	news    chan struct{} // the box has something new
	stopped chan struct{} // by end
	once    sync.Once

	held  atomic.Int64  // bytes of requests that wait
	freed chan struct{} // held has become less

	// Of the goroutine that answers.
	box   int64 // opened; 0: none
	seen  int64 // when it was last written down that the owner is here
	paged int64 // memory of the page that is being answered
	quick bool  // the last page was taken quickly: the next may be large
}

// request is a frame that was read, and what it holds of the memory.
type request struct {
	frame mailbox.Frame
	size  int64
	busy  bool // there was no memory to read it
}

// Handle serves a stream until it ends; it is the handler of mailbox.Protocol.
func (s *Service) Handle(ns network.Stream) {
	st := &stream{
		s: s, net: ns, in: transport.NewReader(ns),
		arrived: make(chan request, maxGather), news: make(chan struct{}, 1),
		stopped: make(chan struct{}), freed: make(chan struct{}, 1),
	}
	well := false // ended as it should: what was written is delivered
	defer func() {
		if !well {
			_ = ns.Reset() // it has ended either way
		}
	}()
	if ns.Scope().ReserveMemory(transport.ReadBuffer, network.ReservationPriorityMedium) != nil {
		s.counters.turnedAway.Add(1)
		return
	}
	if st.who = s.sources.enter(ns.Conn()); st.who == nil {
		s.counters.turnedAway.Add(1)
		return
	}
	defer st.who.leave()
	if !s.join(st) {
		return
	}
	defer s.part(st)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	rand.Read(st.nonce[:])
	now := s.settings()
	if st.write(&mailbox.Hello{Nonce: st.nonce, Draining: now.Draining, Hours: now.hours()}) != nil {
		return
	}
	st.in.Begin() // we spoke first: from here on a client has the time between frames
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(st.arrived)
		st.read(ctx)
	})
	if well = st.serve(ctx) == nil; well {
		well = ns.Close() == nil // ends reading, too
	} else {
		_ = ns.Reset() // likewise
	}
	cancel()
	st.releasePage()
	for r := range st.arrived {
		st.release(r)
	}
	reading.Wait()
}

// join counts the stream among those that have to end before the service does.
func (s *Service) join(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.streams[st] = struct{}{}
	s.live.Add(1)
	return true
}

func (s *Service) part(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	if w := s.waiting[st.box]; w != nil {
		if delete(w, st); len(w) == 0 {
			delete(s.waiting, st.box)
		}
	}
	s.live.Done()
}

// watch has the stream hear of deposits in its box.
func (s *Service) watch(st *stream, box int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.box = box
	if s.waiting[box] == nil {
		s.waiting[box] = make(map[*stream]bool)
	}
	s.waiting[box][st] = true
}

// end has the stream end after what it is about.
func (st *stream) end() { st.once.Do(func() { close(st.stopped) }) }

// poke tells the stream that its box has something new.
func (st *stream) poke() {
	select {
	case st.news <- struct{}{}:
	default:
	}
}

// read reads requests until the stream ends or breaks the framing.
func (st *stream) read(ctx context.Context) {
	for {
		st.in.Begin()
		head, err := st.in.Peek(lengthPeek)
		if err != nil {
			return
		}
		length, n := binary.Uvarint(head)
		if n <= 0 || length > 2*protocol.MaxEnvelope {
			return
		}
		size := int64(length)
		for held := st.held.Load(); held > 0 && held+size > streamHold; held = st.held.Load() {
			select {
			case <-st.freed:
			case <-ctx.Done():
				return
			}
		}
		r := request{size: size}
		if !st.who.hold(size) {
			if _, err := st.in.Discard(n + int(length)); err != nil {
				return
			}
			r.size, r.busy = 0, true
		} else {
			st.held.Add(size)
			if r.frame, err = mailbox.ReadRequest(st.in.Reader); err != nil {
				st.release(r)
				return
			}
		}
		st.in.SetIdle(transport.IdleTimeout)
		if c, ok := r.frame.(*mailbox.Collect); ok {
			st.in.SetIdle(transport.IdleTimeout + c.Wait) // the answer may take so long
		}
		select {
		case st.arrived <- r:
		case <-ctx.Done():
			st.release(r)
			return
		}
	}
}

// release gives back the memory of a request.
func (st *stream) release(r request) {
	if r.size == 0 {
		return
	}
	st.who.release(r.size)
	st.held.Add(-r.size)
	select {
	case st.freed <- struct{}{}:
	default:
	}
}

// errStopped means that the service ends the stream.
var errStopped = errors.New("the service ends the stream")

// errSilent means that a stream is ended without another word.
var errSilent = errors.New("the client broke the protocol")

// serve meets requests in their order. It returns nil when the stream ended
// well.
func (st *stream) serve(ctx context.Context) error {
	var next *request // taken while something else was gathered
	defer func() {
		if next != nil {
			st.release(*next)
		}
	}()
	for {
		var r request
		if next != nil {
			r, next = *next, nil
		} else {
			var ok bool
			select {
			case r, ok = <-st.arrived:
			case <-st.stopped:
				return nil
			}
			if !ok {
				return nil
			}
		}
		if _, ok := r.frame.(*mailbox.Deposit); ok {
			var err error
			if next, err = st.deposits(ctx, r); err != nil {
				return err
			}
			continue
		}
		answer, then, err := st.meet(ctx, r)
		next = then
		st.release(r)
		if errors.Is(err, errStopped) {
			return nil
		}
		if err != nil {
			return err
		}
		began := time.Now()
		err = st.send(answer)
		if st.paged > 0 {
			st.quick = time.Since(began) < quickly
		}
		st.releasePage()
		if err != nil {
			return err
		}
	}
}

// releasePage gives back the memory of a page.
func (st *stream) releasePage() {
	st.who.release(st.paged)
	st.paged = 0
}

// deposits meets a deposit and those that have arrived behind it. What it took
// beyond them is returned.
func (st *stream) deposits(ctx context.Context, first request) (next *request, err error) {
	all := []request{first}
gather:
	for len(all) < maxGather {
		select {
		case r, ok := <-st.arrived:
			if !ok {
				break gather
			}
			if _, ok := r.frame.(*mailbox.Deposit); !ok {
				next = &r
				break gather
			}
			all = append(all, r)
		default:
			break gather
		}
	}
	defer func() {
		for _, r := range all {
			st.release(r)
		}
	}()
	outcomes := make([]outcome, len(all))
	answers := make([]mailbox.Frame, len(all))
	var ops []*op
	var index []int
	draining := st.s.settings().Draining
	for i, r := range all {
		env := r.frame.(*mailbox.Deposit).Envelope
		if wait := st.who.spend(int64(len(env)) + requestCost); wait > 0 {
			answers[i] = &mailbox.Refused{Why: mailbox.RefusedBusy, Wait: wait}
			continue
		}
		if draining {
			answers[i] = &mailbox.Refused{Why: mailbox.RefusedDraining}
			continue
		}
		index = append(index, i)
		key := keyOf(mailbox.DigestOf(env))
		ops = append(ops, &op{do: func(t *tx) (err error) {
			outcomes[i], err = t.deposit(env, key)
			return err
		}})
	}
	if len(ops) > 0 {
		if err := st.s.submit(ctx, ops...); err != nil {
			return next, err
		}
	}
	for n, o := range ops {
		i := index[n]
		switch {
		case o.err != nil:
			answers[i] = busy()
		case outcomes[i].why != 0:
			answers[i] = &mailbox.Refused{Why: outcomes[i].why}
		default:
			env := all[i].frame.(*mailbox.Deposit).Envelope
			answers[i] = mailbox.SignStored(st.s.key, env, outcomes[i].hours)
		}
	}
	return next, st.send(answers...)
}

func busy() *mailbox.Refused {
	return &mailbox.Refused{Why: mailbox.RefusedBusy, Wait: busyPause}
}

// meet answers one request that is not a deposit. It may take the next one.
func (st *stream) meet(ctx context.Context, r request) (answer mailbox.Frame, next *request, err error) {
	if r.busy {
		return busy(), nil, nil
	}
	cost := int64(requestCost)
	if o, ok := r.frame.(*mailbox.Open); ok && o.Create {
		cost = boxCost
	}
	if wait := st.who.spend(cost + r.size); wait > 0 {
		return &mailbox.Refused{Why: mailbox.RefusedBusy, Wait: wait}, nil, nil
	}
	switch f := r.frame.(type) {
	case *mailbox.Audit:
		answer, err = st.audit(ctx, f)
	case *mailbox.Open:
		answer, err = st.open(ctx, f)
	case *mailbox.Tags:
		answer, err = st.register(ctx, f)
	case *mailbox.Collect:
		return st.collect(ctx, f)
	default:
		return nil, nil, errSilent
	}
	return answer, nil, err
}

func (st *stream) audit(ctx context.Context, f *mailbox.Audit) (mailbox.Frame, error) {
	var env []byte
	err := st.s.read(ctx, func(c *conn) (err error) {
		env, err = c.find(f.Tag, f.Digest)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return nil, err
	case err != nil:
		return busy(), nil // it may be there, and cannot be read now
	case env == nil:
		return &mailbox.Refused{Why: mailbox.RefusedUnknown}, nil
	}
	return mailbox.Prove(env, f.Nonce), nil
}

func (st *stream) open(ctx context.Context, f *mailbox.Open) (mailbox.Frame, error) {
	if st.box != 0 {
		return nil, errSilent
	}
	if !f.Verify(st.s.node, st.nonce) {
		return &mailbox.Refused{Why: mailbox.RefusedProof}, nil
	}
	var b box
	var quota int64
	var out outcome
	group := st.s.group(st.who.place())
	err := st.s.change(ctx, func(t *tx) (err error) {
		b, quota, out, err = t.open(f.Box, f.Create, group)
		return err
	})
	if errors.Is(err, errFull) || errors.Is(err, errFailed) {
		// What waits can be collected all the same, by those who have a box.
		err = st.s.read(ctx, func(c *conn) error {
			found, ok, err := c.byKey(f.Box)
			if err == nil && !ok {
				err = errNoBox
			}
			b, quota, out = found, found.mail, outcome{}
			return err
		})
	}
	switch {
	case ctx.Err() != nil || errors.Is(err, errClosed):
		return nil, errClosed
	case err != nil:
		return busy(), nil
	case out.why != 0:
		return &mailbox.Refused{Why: out.why}, nil
	}
	st.s.watch(st, b.id)
	st.seen = st.s.age.now()
	return &mailbox.Opened{
		Generation: uint64(b.generation), Tags: uint32(b.tags), Items: uint32(b.items),
		Bytes: uint64(b.mail + b.requests), Quota: uint64(max(0, quota)),
	}, nil
}

// group is the group of sources that a prefix belongs to.
func (s *Service) group(p netip.Prefix) int64 {
	h := sha256.New()
	h.Write(s.salt)
	b, _ := p.MarshalBinary() // it cannot fail
	h.Write(b)
	return int64(binary.BigEndian.Uint16(h.Sum(nil)) % groups)
}

func (st *stream) register(ctx context.Context, f *mailbox.Tags) (mailbox.Frame, error) {
	if st.box == 0 {
		return &mailbox.Refused{Why: mailbox.RefusedNoBox}, nil
	}
	var b box
	var out outcome
	err := st.s.change(ctx, func(t *tx) (err error) {
		b, out, err = t.register(st.box, f)
		return err
	})
	switch {
	case ctx.Err() != nil || errors.Is(err, errClosed):
		return nil, errClosed
	case err != nil:
		return busy(), nil
	case out.why != 0:
		return &mailbox.Refused{Why: out.why}, nil
	}
	return &mailbox.Registered{Generation: uint64(b.generation), Tags: uint32(b.tags)}, nil
}

func (st *stream) collect(ctx context.Context, f *mailbox.Collect) (answer mailbox.Frame, next *request, err error) {
	if st.box == 0 {
		return &mailbox.Refused{Why: mailbox.RefusedNoBox}, nil, nil
	}
	if len(f.Done) > 0 {
		if err = st.s.reclaim(ctx, func(t *tx) error { return t.remove(st.box, f.Done) }); err == nil {
			st.seen = st.s.age.now()
			st.s.counters.collected.Add(int64(len(f.Done)))
		}
	} else if now := st.s.age.now(); now-st.seen >= touchEvery {
		_ = st.s.change(ctx, func(t *tx) error { return t.touch(st.box) }) // next time, if not now
		st.seen = now
	}
	switch {
	case errors.Is(err, errNoBox):
		return &mailbox.Refused{Why: mailbox.RefusedNoBox}, nil, nil
	case ctx.Err() != nil || errors.Is(err, errClosed):
		return nil, nil, errClosed
	case err != nil:
		return busy(), nil, nil
	}
	timer := time.NewTimer(f.Wait)
	defer timer.Stop()
	for {
		// Whatever comes from here on is in the page, or wakes us.
		select {
		case <-st.news:
		default:
		}
		st.releasePage()
		answer, err := st.page(ctx, f.After)
		if p, ok := answer.(*mailbox.Page); err != nil || !ok || len(p.Items) > 0 || f.Wait == 0 {
			return answer, nil, err
		}
		select {
		case <-st.news:
		case <-timer.C:
			return answer, nil, nil
		case <-st.stopped:
			return nil, nil, errStopped // an empty page would say that the time is over
		case r, ok := <-st.arrived:
			if !ok {
				return nil, nil, errClosed
			}
			return answer, &r, nil
		}
	}
}

// page reads a page, a small one at first, to who reads slowly, and if there is
// no memory for a large one. What it
// holds is given back when it has been sent.
func (st *stream) page(ctx context.Context, after uint64) (mailbox.Frame, error) {
	limit := mailbox.MaxPage
	if !st.quick || !st.who.hold(pageHold(limit)) {
		if limit = protocol.MaxEnvelope; !st.who.hold(pageHold(limit)) {
			return busy(), nil
		}
	}
	st.paged = pageHold(limit)
	var p *mailbox.Page
	err := st.s.read(ctx, func(c *conn) (err error) {
		if _, ok, err := c.byID(st.box); err != nil || !ok {
			return errors.Join(err, errNoBox)
		}
		p, err = c.page(st.box, after, limit)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return nil, err
	case errors.Is(err, errNoBox):
		return &mailbox.Refused{Why: mailbox.RefusedNoBox}, nil
	case err != nil:
		return busy(), nil
	case len(p.Items) == 0:
		st.releasePage()
	}
	return p, nil
}

// pageHold is the memory of a page and of its frame.
func pageHold(limit int) int64 { return 2 * int64(limit) }

// send counts answers and writes them.
func (st *stream) send(answers ...mailbox.Frame) error {
	for _, f := range answers {
		st.s.counters.count(f)
	}
	return st.write(answers...)
}

// write writes frames in one turn.
func (st *stream) write(frames ...mailbox.Frame) error {
	var b []byte
	for _, f := range frames {
		b = mailbox.AppendFrame(b, f)
	}
	end := time.Now().Add(turnTime)
	for piece := bytes.NewBuffer(b); piece.Len() > 0; {
		deadline := time.Now().Add(writeTime)
		if deadline.After(end) {
			deadline = end
		}
		if err := st.net.SetWriteDeadline(deadline); err != nil {
			return err
		}
		if _, err := st.net.Write(piece.Next(writePiece)); err != nil {
			return err
		}
	}
	return nil
}
