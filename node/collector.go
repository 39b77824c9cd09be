package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/mailbox"
)

const (
	// A node holds its answer back for waitMin to waitMax when there is
	// nothing: at random, because a rhythm would be a fingerprint.
	waitMin = 3 * time.Minute
	waitMax = 8 * time.Minute

	// A node may write a page for so long: on the slowest link that works, a page
	// of 128 KiB takes two minutes.
	pageTime = 3 * time.Minute

	// What could not be taken is asked for again after refetchAfter.
	refetchAfter = 5 * time.Minute

	// The tags at a node are replaced whole after retagMin to retagMax, if any
	// have changed, and at once if many are out of use: a contact was blocked.
	// A node is told at once of the tags of a new session or invite, and of no
	// others: two people who talk directly move on to new tags in one moment,
	// and it is none of a node's business when. There is a window of spare tags.
	retagMin  = time.Hour
	retagMax  = 4 * time.Hour
	retagMany = protocol.TagsBehind

	// A box is tested after probeMin to probeMax, and soon after it was opened.
	probeMin   = 4 * time.Hour
	probeMax   = 8 * time.Hour
	probeSoon  = 10 * time.Minute
	probeTags  = 4
	probeGrace = time.Minute // from the receipt until it has to be here

	// lastCall is how much longer than a node keeps mail a box is emptied that
	// was given up: contacts may not have heard of it.
	lastCall = 24 * time.Hour
	// longestKept is the most that is believed of how long a node keeps mail:
	// twice as long as senders try.
	longestKept = 60 * 24 * time.Hour

	// steadyVisit is how long a node has to keep a stream for the next to be
	// opened at once when it ends.
	steadyVisit = time.Minute
	// A node may hand out maxBarren bytes in barrenTime that bring nothing, beside
	// what it said at first that waits, of which maxWaiting are believed: what
	// the other boxes have brought already.
	maxBarren  = 32 << 20
	barrenTime = time.Hour
	maxWaiting = 256 << 20
)

// collector empties one box. It has a transport name of its own, so that a node
// that keeps boxes of several of its owners' accounts sees several strangers
// (threats D13).
type collector struct {
	n       *Node
	info    peer.AddrInfo
	address string
	key     mailbox.BoxKey
	leaving bool
	removed bool          // by the user: remembered until nothing can come, whatever the node says
	left    int64         // age since which it is
	news    chan struct{} // the tags we accept have changed
	again   chan struct{} // the node may be reachable now
	stop    context.CancelFunc
	tags    map[envelope.Tag]string // registered in this run, probes excepted, and of which session
	renew   time.Time               // when they are next replaced whole

	probing baton // one probe at a time

	mu     sync.Mutex
	state  boxView
	probes map[mailbox.Digest]chan struct{} // test envelopes on their way; closed on arrival
	tests  [probeTags]envelope.Tag
}

// boxView is what is known of a box while the daemon runs.
type boxView struct {
	connected bool // and it knows our tags
	emptied   bool // and it has handed out all it has
	visits    int  // how often it was opened
	draining  bool
	hours     uint16
	opened    mailbox.Opened
}

func newCollector(n *Node, row store.BoxRow) (*collector, error) {
	info, err := infoOf(row.Address)
	if err != nil {
		return nil, err
	}
	if len(row.Key) != len(mailbox.BoxKey{}) || peer.ID(row.Node) != info.ID {
		return nil, store.ErrDamaged
	}
	c := &collector{
		n: n, info: info, key: mailbox.BoxKey(row.Key), leaving: row.State.Leaving(), removed: row.State == store.BoxRemoved, left: row.Left, address: row.Address,
		news: make(chan struct{}, 1), again: make(chan struct{}, 1), probing: newBaton(), probes: make(map[mailbox.Digest]chan struct{}),
	}
	for i := range c.tests {
		if _, err := io.ReadFull(n.self.rand, c.tests[i][:]); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *collector) look() boxView {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *collector) set(change func(*boxView)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.state)
}

// run collects until ctx ends, or until a box that was given up is done with.
func (c *collector) run(ctx context.Context) {
	var testing sync.WaitGroup
	defer testing.Wait()
	if !c.leaving {
		testing.Go(func() { c.test(ctx) })
	}
	for failures := 0; ctx.Err() == nil; {
		began := time.Now()
		done, worked, err := c.visit(ctx)
		c.set(func(v *boxView) { v.connected, v.emptied = false, false })
		if done || ctx.Err() != nil {
			return
		}
		if worked && time.Since(began) >= steadyVisit {
			failures = 0
		}
		if err := c.n.update(ctx, func(w *work) error { return w.faulty(c.info.ID, err) }); err != nil {
			c.n.log.Warn("what a mailbox did could not be noted", "cause", err)
		}
		c.n.log.Debug("a mailbox visit ended", "worked", worked, "cause", err)
		pause := min(retryMin<<min(failures, 20), retryMax)
		failures++
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-c.again:
			failures = 0
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// visit opens the box, brings its tags up to date, and collects until
// something fails. done says that nothing of the box is left to do; worked,
// that the node handed out what it has.
func (c *collector) visit(ctx context.Context) (done, worked bool, err error) {
	if c.leaving && c.n.age.now()-c.left > (longestKept+lastCall).Milliseconds() {
		return true, false, c.forget(ctx)
	}
	defer func() {
		// It was not asked where the day's bytes are used up.
		if !done && !worked && ctx.Err() == nil && !c.n.cfg.Host.Meter().Spent() {
			err = errors.Join(err, c.n.update(ctx, func(w *work) error { return w.silent(c.info.ID) }))
		}
	}()
	if err := c.n.rush.wait(ctx); err != nil {
		return false, false, err
	}
	host, release, err := c.n.modes.errand()
	if err != nil {
		return false, false, err
	}
	defer release()
	m, err := dialMail(ctx, host, c.info)
	if err != nil {
		return false, false, err
	}
	defer m.close()
	m.in.SetFrame(pageTime)
	opened, err := m.open(&c.key, !c.leaving)
	var r *refusal
	if errors.As(err, &r) && r.Why == mailbox.RefusedNoBox && c.leaving && !c.removed {
		return true, false, c.forget(ctx)
	}
	if err != nil {
		return false, false, err
	}
	if opened.Generation >= math.MaxInt64 {
		return false, false, errOddAnswer // nobody has replaced tags so often
	}
	drained := c.look().draining != m.hello.Draining
	c.set(func(v *boxView) {
		v.draining, v.hours, v.opened = m.hello.Draining, m.hello.Hours, *opened
		v.visits++
	})
	h := &harvest{c: c, waiting: int64(min(opened.Bytes, maxWaiting))}
	defer func() {
		if h.pages == 0 || done {
			return
		}
		at := h.heard
		if ctx.Err() != nil { // it is we who stop
			at = c.n.now()
		}
		err = errors.Join(err, c.n.update(context.WithoutCancel(ctx), func(w *work) error { return w.seen(c.info.ID, at.UnixMilli()) }))
	}()
	err = c.retag(ctx, m, opened)
	if noRoom(err) && (opened.Items > 0 || c.leaving) {
		// What waits is handed out all the same, and then there may be room.
		if err := c.sweep(ctx, m, h); err != nil {
			return false, false, err
		}
		if err = c.retag(ctx, m, opened); noRoom(err) && c.leaving {
			err = nil // it knows tags enough
		}
	}
	if err != nil {
		return false, false, err
	}
	if err := c.n.update(ctx, func(w *work) error {
		w.mail = w.mail || drained
		return w.activate(c.info.ID)
	}); err != nil {
		return false, false, err
	}
	c.set(func(v *boxView) { v.connected = true })
	if c.leaving {
		done, err = c.empty(ctx, m, h)
		return done, h.pages > 0, err
	}
	err = c.collect(ctx, m, h)
	return false, h.pages > 0, err
}

// noRoom says whether a node refused tags because it has no room for them, or
// cannot write.
func noRoom(err error) bool {
	var r *refusal
	return errors.As(err, &r) && (r.Why == mailbox.RefusedLimit || r.Why == mailbox.RefusedBusy)
}

// kept is how long the node keeps mail, as far as it is believed.
func kept(h *mailbox.Hello) time.Duration {
	return min(time.Duration(h.Hours)*time.Hour, longestKept)
}

// activate notes that a box is open and knows our tags.
func (w *work) activate(node peer.ID) error {
	boxes, err := w.tx.Boxes()
	if err != nil {
		return err
	}
	for _, b := range boxes {
		if peer.ID(b.Node) == node && b.State == store.BoxNew {
			b.State, w.mail = store.BoxActive, true
			return w.tx.SaveBox(b)
		}
	}
	return nil
}

// maxBoxTags is how many tags we ask a node to know: nodes allow 16,384.
const maxBoxTags = 15_000

// tagWindow is how many tags of each session a node is told, behind and ahead of
// the newest one in use. Who has very many contacts tells fewer: of those ahead a
// sender uses no more than MaxTagAhead, one a day; those behind are of mail that
// came late, and the first to be left out.
func tagWindow(sessions, invites int) (behind, ahead int) {
	span := (maxBoxTags-invites)/max(sessions, 1) - 1 - 1 // beside the newest, and that of index 0
	few := min(2, span/3)                                 // behind
	if span >= protocol.TagsBehind+protocol.TagWindow {
		return protocol.TagsBehind, protocol.TagWindow
	}
	ahead = max(0, min(span-few, protocol.MaxTagAhead))
	return max(0, min(span-ahead, protocol.TagsBehind)), ahead
}

// registrations are the tags that a box is to know, our tests included. current
// has the session of each, or "" for an invite's.
func (c *collector) registrations(ctx context.Context) (all []mailbox.Registration, current map[envelope.Tag]string, err error) {
	var rows []store.MailTag
	if err := c.n.view(ctx, func(tx *store.Tx) (err error) {
		sessions, invites, err := tx.CountTags()
		if err != nil {
			return err
		}
		behind, ahead := tagWindow(sessions, invites)
		rows, err = tx.MailTags(protocol.TagWindow-ahead, behind+1+ahead)
		return err
	}); err != nil {
		return nil, nil, err
	}
	current = make(map[envelope.Tag]string, len(rows))
	for _, t := range rows {
		r := mailbox.Registration{Tag: envelope.Tag(t.Tag), Class: mailbox.ClassContact}
		if t.Session == nil {
			r.Class = mailbox.ClassRequest
		}
		current[r.Tag] = string(t.Session)
		all = append(all, r)
	}
	for _, t := range c.tests {
		all = append(all, mailbox.Registration{Tag: t, Class: mailbox.ClassContact})
	}
	// In their own order tags say nothing of what belongs together.
	slices.SortFunc(all, func(a, b mailbox.Registration) int { return bytes.Compare(a.Tag[:], b.Tag[:]) })
	return all, current, nil
}

// retag registers all our tags, in the place of all that were registered before.
func (c *collector) retag(ctx context.Context, m *mailStream, opened *mailbox.Opened) error {
	all, current, err := c.registrations(ctx)
	if err != nil {
		return err
	}
	if c.leaving && c.n.age.now()-c.left > kept(m.hello).Milliseconds() {
		all, current = nil, nil // nothing may come any more
	}
	c.replaced(current)
	if err := m.register(opened.Generation+1, all, true); err != nil {
		return err
	}
	c.set(func(v *boxView) { v.opened.Generation = opened.Generation + 1 })
	return nil
}

// replaced notes that the node is to know these tags and no others.
func (c *collector) replaced(tags map[envelope.Tag]string) {
	c.tags, c.renew = tags, time.Now().Add(retagMin+rand.N(retagMax-retagMin))
}

// changes are the frames that bring the box's tags up to date: those that
// somebody may wait for, or all of them, if it is time or too many are out of use.
func (c *collector) changes(ctx context.Context) ([]mailbox.Frame, error) {
	all, current, err := c.registrations(ctx)
	if err != nil {
		return nil, err
	}
	stale := 0
	known := make(map[string]bool) // sessions of which the node knows tags
	for t, session := range c.tags {
		if _, ok := current[t]; !ok {
			stale++
		}
		known[session] = session != ""
	}
	due := !time.Now().Before(c.renew)
	generation, prune := c.look().opened.Generation, stale > retagMany || due && !maps.Equal(c.tags, current)
	switch {
	case prune:
		generation++
		c.set(func(v *boxView) { v.opened.Generation = generation })
		c.replaced(current)
	case due:
		c.replaced(c.tags)
		return nil, nil
	default:
		fresh := all[:0]
		for _, r := range all {
			session, ok := current[r.Tag]
			if _, told := c.tags[r.Tag]; ok && !told && !known[session] {
				fresh = append(fresh, r)
				c.tags[r.Tag] = session
			}
		}
		all = fresh
	}
	var frames []mailbox.Frame
	for len(all) > 0 {
		n := min(len(all), mailbox.MaxTags)
		frames = append(frames, &mailbox.Tags{Generation: generation, Tags: all[:n], Prune: prune && n == len(all)})
		all = all[n:]
	}
	return frames, nil
}

// collect takes what waits and what comes, until something fails. One request
// is always with the node, which answers as soon as it has something.
//
// The first request is not to wait: that shows whether the node hands out at all.
func (c *collector) collect(ctx context.Context, m *mailStream, h *harvest) error {
	m.in.SetIdle(waitMax + mailAnswerTime)
	answers := make(chan mailbox.Frame)
	reading, stop := context.WithCancel(ctx)
	var failed error
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(answers)
		for {
			f, err := m.read()
			if err != nil {
				failed = err
				return
			}
			select {
			case answers <- f:
			case <-reading.Done():
				failed = reading.Err()
				return
			}
		}
	})
	defer reader.Wait()
	defer m.close()
	defer stop()
	renew := time.NewTimer(time.Until(c.renew))
	defer renew.Stop()
	hasty := 0            // answers in a row that were not held back
	var skipped time.Time // since when something waits there that we could not take
	next := &mailbox.Collect{}
	asked, interrupted := time.Now(), false // whether something was asked after next
	owed := 0                               // answers to that
	bring := func() error {
		frames, err := c.changes(ctx)
		renew.Reset(time.Until(c.renew))
		if err != nil || len(frames) == 0 {
			return err
		}
		interrupted = true
		owed += len(frames)
		return m.write(frames...) // the node answers the Collect first
	}
	if err := m.write(next); err != nil {
		return err
	}
	for {
		select {
		case f, ok := <-answers:
			if !ok {
				return failed
			}
			switch f := f.(type) {
			case *mailbox.Page:
				switch early := len(f.Items) == 0 && !interrupted && time.Since(asked) < next.Wait/2; {
				case !early:
					hasty = 0
				case hasty < maxHasty: // it may be restarted, or its clock be wrong
					hasty++
				default:
					return errHasty
				}
				done, err := h.take(ctx, f, next.After)
				if err != nil {
					return err
				}
				if len(done) < len(f.Items) && skipped.IsZero() {
					skipped = time.Now()
				}
				slices.Sort(done)
				next = &mailbox.Collect{Done: done, After: next.After, Wait: c.wait()}
				if len(f.Items) > 0 {
					next.After = f.Items[len(f.Items)-1].ID
				}
				if !skipped.IsZero() && time.Since(skipped) > refetchAfter {
					next.After, skipped = 0, time.Time{}
				}
				asked, interrupted = time.Now(), false
				if err := m.write(next); err != nil {
					return err
				}
			case *mailbox.Registered:
				if owed--; owed < 0 {
					return errOddAnswer
				}
			case *mailbox.Refused:
				return &refusal{*f}
			default:
				return errOddAnswer
			}
		case <-c.news:
			if err := bring(); err != nil {
				return err
			}
		case <-renew.C:
			if err := bring(); err != nil {
				return err
			}
		}
	}
}

func (c *collector) wait() time.Duration {
	return (waitMin + rand.N(waitMax-waitMin)).Truncate(time.Second)
}

// errHasty means that a node does not hold its answer back as it was asked to:
// it ends, or it wants to keep us busy.
var errHasty = errors.New("the mailbox does not hold its answer back")

// maxHasty is how many answers in a row may come too soon.
const maxHasty = 3

// errForeign means the same of what is not even addressed to us: no contact
// can be the cause of that.
var errForeign = errors.New("the mailbox hands out without end what is not ours")

// errGlut means that a node hands out more that brings nothing than can be
// waiting for us.
var errGlut = errors.New("the mailbox hands out without end what brings nothing")

// harvest is what one visit brings.
type harvest struct {
	c       *collector
	pages   int
	heard   time.Time // by the clock on the wall: when the last page came
	noted   time.Time // when the store was last told so
	waiting int64     // what the node said that waits
	barren  int64     // bytes that brought nothing, since
	foreign bool      // some of it under tags that are not ours
	since   time.Time
}

// take receives a page that was asked for after an item, and returns the items
// that are done with.
func (h *harvest) take(ctx context.Context, p *mailbox.Page, after uint64) (done []uint64, err error) {
	c := h.c
	if len(p.Items) > 0 && p.Items[0].ID <= after {
		return nil, errOddAnswer
	}
	h.pages++
	h.heard = c.n.now()
	if h.pages == 1 || time.Since(h.noted) >= spokeEvery {
		h.noted = time.Now()
		if err := c.n.update(ctx, func(w *work) error { return w.spoke(c.info.ID) }); err != nil {
			return nil, err
		}
	}
	done, fruitful, err := c.take(ctx, p)
	if fruitful || time.Since(h.since) > barrenTime {
		h.barren, h.since, h.foreign = 0, time.Now(), false
	}
	if !fruitful {
		for _, item := range p.Items {
			h.barren += int64(len(item.Envelope))
			_, ours := c.tags[envelope.Tag(item.Envelope[:envelope.TagSize])]
			h.foreign = h.foreign || !ours && !c.isTest(item.Envelope)
		}
	}
	if err == nil && h.barren > maxBarren+h.waiting {
		err = errGlut
		if h.foreign {
			err = errForeign
		}
	}
	c.set(func(v *boxView) { v.count(p, len(done)) })
	if err == nil && !p.More && len(done) == len(p.Items) {
		err = c.judge(ctx)
	}
	return done, err
}

// judge settles what contacts say that the node should have handed out, which
// has handed out all it has.
func (c *collector) judge(ctx context.Context) error {
	claims := 0
	if err := c.n.view(ctx, func(tx *store.Tx) (err error) {
		claims, err = tx.Claims([]byte(c.info.ID), c.n.age.now()-claimGrace.Milliseconds())
		return err
	}); err != nil || claims == 0 {
		return err
	}
	return c.n.update(ctx, func(w *work) error { return w.judge(c.info.ID) })
}

// count brings up to date what waits in a box, after a page of which done items
// are done with.
func (v *boxView) count(p *mailbox.Page, done int) {
	size := uint64(0)
	for _, item := range p.Items {
		size += uint64(len(item.Envelope))
	}
	rest := uint32(len(p.Items) - done)
	if v.emptied = !p.More; v.emptied {
		v.opened.Items, v.opened.Bytes = rest, uint64(rest)*protocol.MinEnvelope
		return
	}
	v.opened.Items -= min(v.opened.Items, uint32(done))
	v.opened.Bytes -= min(v.opened.Bytes, size)
}

// take receives a page and returns the items that are done with. fruitful says
// that something opened.
func (c *collector) take(ctx context.Context, p *mailbox.Page) (done []uint64, fruitful bool, err error) {
	var batch [][]byte
	var ids []uint64
	for _, item := range p.Items {
		if c.arrived(item.Envelope) {
			done = append(done, item.ID)
			continue
		}
		batch, ids = append(batch, item.Envelope), append(ids, item.ID)
	}
	if len(batch) == 0 {
		return done, false, nil
	}
	if got, err := c.n.lobby.receiveAll(ctx, batch, c.info.ID); err == nil {
		c.n.outbox.alive(got.from)
		return append(done, ids...), got.opened > 0, nil
	}
	// One that cannot be taken now must not keep the others away.
	for i, raw := range batch {
		switch got, err := c.n.lobby.receiveAll(ctx, [][]byte{raw}, c.info.ID); {
		case err == nil:
			done, fruitful = append(done, ids[i]), fruitful || got.opened > 0
		case !errors.Is(err, errBusy) && !errors.Is(err, errTooMuch):
			return nil, false, err
		}
	}
	return done, fruitful, nil
}

// empty collects from a box that was given up until nothing waits. done says
// that nothing can come any more.
func (c *collector) empty(ctx context.Context, m *mailStream, h *harvest) (done bool, err error) {
	for {
		if err := c.sweep(ctx, m, h); errors.Is(err, errForeign) && !c.removed {
			return true, errors.Join(err, c.forget(ctx)) // there is no end to it
		} else if err != nil {
			return false, err
		}
		if c.n.age.now()-c.left > (kept(m.hello) + lastCall).Milliseconds() {
			return true, c.forget(ctx)
		}
		timer := time.NewTimer(c.wait())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false, ctx.Err()
		}
	}
}

// sweep collects what waits.
func (c *collector) sweep(ctx context.Context, m *mailStream, h *harvest) error {
	for next := (&mailbox.Collect{}); ; {
		answer, err := m.ask(next)
		if err != nil {
			return err
		}
		p, ok := answer.(*mailbox.Page)
		if !ok {
			return errOddAnswer
		}
		if next.Done, err = h.take(ctx, p, next.After); err != nil {
			return err
		}
		slices.Sort(next.Done)
		if len(p.Items) == 0 {
			return nil
		}
		next.After = p.Items[len(p.Items)-1].ID
	}
}

// forget drops a box that is done with.
func (c *collector) forget(ctx context.Context) error {
	return c.n.update(ctx, func(w *work) error {
		w.mail = true
		return w.tx.DeleteBox([]byte(c.info.ID))
	})
}

// arrived says whether an envelope is a test of our own.
func (c *collector) arrived(env []byte) bool {
	if !c.isTest(env) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := mailbox.DigestOf(env)
	if here := c.probes[d]; here != nil {
		close(here)
		delete(c.probes, d)
	}
	return true
}

func (c *collector) isTest(env []byte) bool {
	for _, t := range c.tests {
		if bytes.HasPrefix(env, t[:]) {
			return true
		}
	}
	return false
}

// test probes the box now and then.
func (c *collector) test(ctx context.Context) {
	wait := probeSoon/2 + rand.N(probeSoon)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		wait = c.n.leisurely(probeMin + rand.N(probeMax-probeMin))
		if v := c.look(); !v.connected || !v.emptied {
			continue // that it does not answer is noted as such
		}
		if _, err := c.probe(ctx); err != nil && ctx.Err() == nil {
			wait = probeSoon/2 + rand.N(probeSoon) // is it a habit?
		}
	}
}

// errProbeLost means that a node signed for a test envelope and did not hand
// it out, or does not know tags that were registered with it.
var errProbeLost = errors.New("it signed for a test message and did not hand it out")

// probe leaves a test envelope in our own box, as a stranger, and waits for it
// to arrive. To the node it is an envelope like any other.
func (c *collector) probe(ctx context.Context) (took time.Duration, err error) {
	c.probing.Lock()
	defer c.probing.Unlock()
	host, done, err := c.n.modes.errand()
	if err != nil {
		return 0, err
	}
	defer done()
	began, before := time.Now(), c.look().visits
	here, err := c.leaveTest(ctx, host)
	lost, what := false, ""
	var r *refusal
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case errors.As(err, &r) && r.Why == mailbox.RefusedUnknown:
		lost, what = true, "it did not know a tag that was registered with it"
		poke(c.news)
	case errors.Is(err, errOddAnswer):
		lost, what = true, "it gave a false receipt for a test message"
	case err != nil:
		return 0, err
	default:
		timer := time.NewTimer(probeGrace)
		defer timer.Stop()
		select {
		case <-here:
		case <-timer.C:
			if v := c.look(); !v.connected && v.visits < before+2 {
				return 0, errDial // it went away: no fault that it signed for
			}
			lost, what, err = true, errProbeLost.Error(), errProbeLost
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	took = time.Since(began)
	return took, errors.Join(err, c.n.update(ctx, func(w *work) error { return w.probed(c.info.ID, lost, what) }))
}

// leaveTest deposits a test envelope. here is closed when it arrives.
func (c *collector) leaveTest(ctx context.Context, host *transport.Host) (here chan struct{}, err error) {
	env := make([]byte, protocol.MinEnvelope)
	if _, err := io.ReadFull(c.n.self.rand, env); err != nil {
		return nil, fmt.Errorf("make a test message: %w", err)
	}
	copy(env, c.tests[rand.N(len(c.tests))][:])
	m, err := dialMail(ctx, host, c.info)
	if err != nil {
		return nil, err
	}
	defer m.close()
	here = make(chan struct{})
	c.mu.Lock()
	clear(c.probes) // one at a time: an earlier one is lost
	c.probes[mailbox.DigestOf(env)] = here
	c.mu.Unlock()
	answer, err := m.ask(&mailbox.Deposit{Envelope: env})
	if err != nil {
		return nil, err
	}
	if s, ok := answer.(*mailbox.Stored); !ok || !s.Verify(m.node, env) {
		return nil, errOddAnswer
	}
	return here, nil
}
