package node

// The second half of a message's way out (send.go has the first). Every device
// has a courier, which
//
//  1. waits until something is due for the device, or the device calls,
//  2. reaches it (reach.go): remembered addresses, then what is found in the
//     table, with a growing pause between failures,
//  3. offers the stored envelopes in their order, a window at a time,
//  4. notes what the device's daemon took, or may have taken. That is not the end: until the
//     end-to-end receipt an envelope is kept and offered again, after an hour,
//     six hours, a day, and daily from then on.

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/stream"
)

const (
	// retryMin doubles with every failure to reach a device, up to retryMax; a
	// contact we wait for to answer the first time is tried more often.
	retryMin     = time.Second
	retryMax     = 10 * time.Minute
	retryPending = time.Minute

	// greetWithin spreads the first calls after a start, which tell contacts
	// that we are back.
	greetWithin = time.Second

	// settleDelay is how long after it was taken an envelope is noted as sent,
	// and maxUnsettled how many wait for that.
	settleDelay  = 100 * time.Millisecond
	maxUnsettled = 512

	// What is offered and not acknowledged after doubtMin, twice that with every
	// conversation that ended so, up to ackTime, is taken back; what it weighs has
	// the time that it takes at slowLine bytes a second besides, half of 128 kbit/s.
	// While envelopes arrive the road is good, and acknowledgements wait behind them:
	// then it has up to deafTime.
	doubtMin = 6 * time.Second
	slowLine = 8 << 10
	deafTime = 2 * time.Minute

	// maxDials bounds the devices that are being reached at one time, and
	// maxUrgent those besides that somebody waits for, or for which something has
	// come up: they do not queue behind all who are away.
	maxDials  = 8
	maxUrgent = 4

	// handOverTime is how long a conversation that moves to a better road waits
	// for what it has on its way on the old one (docs/spec/roads.md, section 6).
	handOverTime = 3 * time.Second
)

// offerAgain is when an envelope that was taken but not receipted is offered
// again, by how often it has been offered.
var offerAgain = []time.Duration{time.Hour, 6 * time.Hour, 24 * time.Hour}

// courier brings a device what is meant for it. One goroutine runs it.
type courier struct {
	o       *outbox
	n       *Node
	device  identity.DeviceHash
	news    chan struct{}      // the outbox has grown
	changed chan struct{}      // the device's row changed
	calls   chan *conversation // the device called
	heard   chan struct{}      // the device was heard on the local network
	direct  chan struct{}      // there is a connection without a relay

	offering baton // held from reading the outbox until flight holds what was read

	mu     sync.Mutex
	conv   *conversation // live; nil between conversations
	flight []inFlight    // offered and not acknowledged, in order
	empty  chan struct{} // closed when flight becomes empty, if somebody waits
	retry  time.Time     // not called before
	proven []netip.Addr  // where conversations with the device were held, newest last
	peers  []peer.ID     // of the device's transport, newest last, of which the host was told how to meet them

	summons []chan *conversation // who waits for a conversation

	failures int
	window   int            // bytes that may be in flight
	doubt    time.Duration  // how long the device has to acknowledge something
	withheld map[int64]int  // being cancelled, and how often: not offered, whatever was read before
	left     map[int64]bool // being left at mailboxes

	depositor *depositor
}

// inFlight is an envelope that was offered on the live conversation.
type inFlight struct {
	id      int64
	control bool
	offers  int // how often it was taken before
	size    int
	at      time.Time
	acked   bool
}

func (c *courier) setFlight(f []inFlight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flight = f
	if len(f) == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

// idle returns when nothing is in flight.
func (c *courier) idle() {
	c.mu.Lock()
	if len(c.flight) == 0 {
		c.mu.Unlock()
		return
	}
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	empty := c.empty
	c.mu.Unlock()
	<-empty
}

func (c *courier) setConv(conv *conversation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conv, c.window = conv, firstInFlight
}

// run is the courier's life: one conversation after another.
func (c *courier) run(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	var depositing sync.WaitGroup
	if c.n.cfg.MailboxMode != MailboxNone {
		depositing.Go(func() { c.depositor.run(ctx) })
	}
	defer depositing.Wait()
	defer stop()
	greet := true // tell the device once that we are back
	for {
		conv, gone := c.await(ctx, greet)
		if gone {
			return
		}
		greet = false
		if conv == nil {
			continue
		}
		c.n.rush.talk(c.device)
		for conv != nil {
			c.setConv(conv)
			c.answerSummons(conv)
			next, progress := c.converse(ctx, conv)
			c.noteOffered(context.WithoutCancel(ctx), conv)
			c.setConv(nil)
			c.setFlight(nil)
			poke(c.depositor.news)
			if !progress {
				c.failed(retryMax)
			}
			conv = next
		}
		c.n.rush.spend(c.device)
		if ctx.Err() != nil {
			return
		}
	}
}

// failed holds the next call back: longer with every failure, until something
// of ours is taken again.
func (c *courier) failed(limit time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pause := min(retryMin<<min(c.failures, 20), limit)
	c.failures++
	c.retry = time.Now().Add(pause/2 + rand.N(pause))
	poke(c.depositor.news)
}

// hurry has every courier try again at once: the network has changed.
func (o *outbox) hurry() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.couriers {
		c.hurry()
	}
}

func (c *courier) hurry() {
	c.mu.Lock()
	c.failures, c.retry = 0, time.Time{}
	c.mu.Unlock()
	poke(c.changed)
	c.depositor.anew.Store(true)
	poke(c.depositor.news)
}

// failuresAlive is how many failures count of a device that has just written: it
// is called again after some seconds, not minutes.
const failuresAlive = 3

// alive has a device called again that could not be reached for a while, because
// something it wrote has come by a mailbox: it may be there now, and may have no
// way to call us itself. The pause is that of receipts, and for the same reason:
// the node that handed the mail out is not to see whom it came from.
func (o *outbox) alive(device identity.DeviceHash) {
	c := o.courier(device)
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	soon := time.Now().Add(receiptsMin + rand.N(receiptsMax-receiptsMin))
	if c.conv == nil && c.retry.After(soon) {
		c.failures, c.retry = min(c.failures, failuresAlive), soon
		poke(c.changed)
	}
}

// outlook is what a courier knows of its device before it acts.
type outlook struct {
	known   bool          // there is such a device
	shunned bool          // the user has blocked it
	paused  bool          // nothing is to leave: it is blocked, or an alarm waits for the user
	friend  bool          // an established contact
	pending bool          // it has never answered
	keyless bool          // its keys are missing, or those of a newer invite are to replace them
	needed  bool          // something waits, or it is keyless
	due     time.Duration // until then
}

func (c *courier) outlook(ctx context.Context) (o outlook, err error) {
	err = c.n.view(ctx, func(tx *store.Tx) error {
		o = outlook{}
		d, err := tx.Device(c.device[:])
		if ok, err := found(err); !ok {
			return err
		}
		contact, err := tx.Contact(d.Contact)
		if err != nil {
			return err
		}
		o.known = true
		o.shunned = contact.Blocked
		if o.paused = contact.Blocked || contact.Alarm != ""; o.paused {
			return nil
		}
		o.pending = contact.State == store.ContactPending
		o.friend = contact.State == store.ContactEstablished
		if o.keyless = d.Public == nil; o.keyless {
			o.needed = true
			return nil
		}
		due, ok, err := tx.NextDue(c.device[:])
		o.needed, o.due = ok, time.Duration(due-c.n.age.now())*time.Millisecond
		return err
	})
	return o, err
}

// await returns the next conversation: one the device opened, or one we opened
// because something is due. gone says that the courier's work is over.
func (c *courier) await(ctx context.Context, greet bool) (conv *conversation, gone bool) {
	o, err := c.outlook(ctx)
	if ctx.Err() != nil || err == nil && !o.known {
		return nil, true
	}
	c.mu.Lock()
	held, summoned := time.Until(c.retry), len(c.summons) > 0
	c.mu.Unlock()
	var timer <-chan time.Time // when to call
	after := func(d time.Duration) {
		t := time.NewTimer(max(0, d))
		timer = t.C
	}
	switch {
	case err != nil:
		after(retryMin)
	case o.paused:
		c.answerSummons(nil)
	case summoned:
		after(0)
	case o.needed:
		after(max(held, o.due))
	case greet && o.friend: // a stranger who asks is not told when we come
		after(rand.N(greetWithin))
	}
	select {
	case conv := <-c.calls:
		return conv, false
	case <-c.news:
		return nil, false
	case <-c.changed:
		return nil, false
	case <-c.o.draining:
		<-ctx.Done()
		return nil, true
	case <-ctx.Done():
		return nil, true
	case <-timer:
	}
	return c.call(ctx, o), false
}

// call reaches the device, or notes the failure and when to try again.
func (c *courier) call(ctx context.Context, o outlook) *conversation {
	c.mu.Lock()
	urgent := len(c.summons) > 0 || o.needed && c.failures == 0
	c.mu.Unlock()
	places := c.o.urgent
	if !urgent {
		places = c.o.dials
		select {
		case <-c.n.rush.noneElsewhere(c.device):
		case conv := <-c.calls:
			return conv
		case <-c.changed:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
	select {
	case places <- struct{}{}:
	case conv := <-c.calls:
		return conv
	case <-ctx.Done():
		return nil
	}
	defer func() { <-places }()
	for wait := c.o.budget.take(time.Now()); wait > 0; wait = c.o.budget.take(time.Now()) {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case conv := <-c.calls:
			timer.Stop()
			return conv
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
	conv, err := c.reach(ctx)
	if err == nil {
		c.o.budget.give()
		if conv.opened && !c.n.lobby.host(ctx, conv) {
			conv.close(stream.ReasonShutdown)
			return nil
		}
		return conv
	}
	c.answerSummons(nil)
	if ctx.Err() != nil {
		return nil
	}
	if !errors.Is(err, errDial) { // otherwise its mailboxes may still get them
		c.n.rush.end(c.device)
	}
	limit := retryMax
	if o.pending {
		limit = retryPending
	}
	c.failed(limit)
	if err := c.noteFailure(ctx, err); err != nil && ctx.Err() == nil {
		c.n.log.Warn("the ledger could not be kept", "cause", err)
	}
	return nil
}

// noteFailure writes a failed call into the ledger of what waits.
func (c *courier) noteFailure(ctx context.Context, cause error) error {
	why := reasonOf(cause)
	if c.n.cfg.Host.Meter().Spent() && (errors.Is(cause, errNoWayIn) || errors.Is(cause, errNoRecord)) {
		why = "not looked for: " + bytesSpent
	}
	return c.n.update(ctx, func(w *work) error {
		rows, err := w.tx.Outbox(c.device[:], 0, w.age, w.age, maxInFlight)
		if err != nil {
			return err
		}
		for _, d := range rows {
			if d.Message == nil {
				continue
			}
			if d.Attempts, err = addAttempt(d.Attempts, attempt{w.ms(), roadDirect, why}); err != nil {
				return err
			}
			if err := w.tx.SaveDelivery(d); err != nil {
				return err
			}
		}
		return nil
	})
}

// converse offers what is due on a conversation until it ends, or until the
// device opens a better one, which it returns. progress is false if something
// was offered and nothing was taken.
func (c *courier) converse(ctx context.Context, conv *conversation) (next *conversation, progress bool) {
	defer conv.reset()
	if o, err := c.outlook(ctx); err != nil || !o.known || o.shunned || o.keyless {
		return nil, true
	}
	crossing := false
	if err := c.improve(ctx, conv); err != nil {
		return nil, true
	}
	last := int64(0)     // the newest envelope offered
	look := true         // the outbox may hold something that is due
	var seen batch       // what it held when that was looked at
	taken := uint64(0)   // how many the device has acknowledged
	offered := uint64(0) // of how many
	moved := time.Now()
	var heard time.Time // when something was last acknowledged
	draining := c.o.draining
	var settleAt time.Time // when what was taken is noted; zero: nothing was
	defer func() {
		c.settle(context.WithoutCancel(ctx), conv)
		progress = offered == 0 || taken > 0
	}()
	if err := c.n.update(ctx, func(w *work) error { return w.lookForGaps(c.device) }); err != nil {
		return nil, true
	}
	hear := func(count uint64) bool {
		if count < taken || count > offered {
			return false // it counts what was never sent
		}
		c.acknowledged(int(count - taken))
		taken = count
		return true
	}
	for {
		if !settleAt.IsZero() && (draining == nil || time.Until(settleAt) <= 0 || c.unsettled() >= maxUnsettled) {
			if !c.settle(ctx, conv) {
				return
			}
			settleAt, look = time.Time{}, true // what was taken is due again some time
		}
		if last != 0 && c.landed() {
			last, look = 0, true // nothing is in flight: whatever is due goes next
		}
		if look && draining != nil {
			var err error
			if seen, err = c.offer(ctx, conv, &last); err != nil {
				offered++ // it was not taken: the next call waits
				return
			}
			look = false
			if n := len(seen.envelopes); n > 0 {
				offered += uint64(n)
				moved = time.Now()
			}
		}
		wait, ok, stalled := c.patience(seen.next, moved, heard, conv.lastHeard())
		switch {
		case stalled:
			c.giveUp(ctx, conv)
			return
		case !ok:
			conv.close(stream.ReasonIdle)
			return
		}
		if !settleAt.IsZero() {
			wait = min(wait, time.Until(settleAt))
		}
		timer := time.NewTimer(wait)
		select {
		case <-c.news:
			look = true
		case <-timer.C:
			look = true
		case count := <-conv.acked:
			before := taken
			if !hear(count) {
				return
			}
			if taken == before {
				break // it says the same again
			}
			c.n.rush.end(c.device)
			moved, heard = time.Now(), time.Now()
			look = look || seen.full
			if settleAt.IsZero() {
				settleAt = time.Now().Add(settleDelay)
			}
		case other := <-c.calls:
			if !better(other, conv) {
				other.close(stream.ReasonSuperseded)
				break
			}
			timer.Stop()
			if conv.road.relayed() && !other.road.relayed() {
				c.land(ctx, conv, hear)
			}
			conv.close(stream.ReasonSuperseded)
			return other, true
		case <-c.direct:
			if !crossing && conv.opened && conv.road.relayed() {
				crossing = true
				c.o.done.Go(func() { c.cross(ctx, conv) })
			}
		case <-conv.ended:
			timer.Stop()
			select {
			case count := <-conv.acked: // its last word
				hear(count)
			default:
			}
			return
		case <-c.changed:
			look = true
			if o, err := c.outlook(ctx); err != nil || !o.known || o.shunned || o.keyless {
				timer.Stop()
				return
			}
			if err := c.improve(ctx, conv); err != nil {
				timer.Stop()
				return
			}
		case <-draining:
			draining, seen.next = nil, time.Time{} // nothing is offered any more
		case <-ctx.Done():
			timer.Stop()
			conv.close(stream.ReasonShutdown)
			return
		}
		timer.Stop()
	}
}

// patience is how long to wait before something has to happen by itself; ok is
// false when the conversation is to end: nothing was said for long, or what
// was offered is not acknowledged, which is then stalled. heard is when the device
// last acknowledged something, arrived when an envelope of it last came, and next when
// something in the outbox is due, if at all.
func (c *courier) patience(next, moved, heard, arrived time.Time) (wait time.Duration, ok, stalled bool) {
	c.mu.Lock()
	size, since := 0, heard
	for _, f := range c.flight {
		if !f.acked && size == 0 && f.at.After(since) {
			since = f.at
		}
		if !f.acked {
			size += f.size
		}
	}
	doubt := max(c.doubt, doubtMin)
	c.mu.Unlock()
	if size > 0 {
		if arrived.After(since) {
			since = since.Add(min(arrived.Sub(since), deafTime))
		}
		wait = doubt + time.Duration(size)*time.Second/slowLine - time.Since(since)
		return wait, wait > 0, wait <= 0
	}
	wait = idleTime - time.Since(moved)
	if wait <= 0 {
		return 0, false, false
	}
	if !next.IsZero() {
		wait = min(wait, max(0, time.Until(next)))
	}
	return wait, true, false
}

// giveUp ends a conversation that takes nothing any more, and the connection
// under it, or the next call would go the same way. A bridge or a relay that was
// blocked in the middle says nothing of it. Whoever is only slow is given twice the
// time on the next one.
func (c *courier) giveUp(ctx context.Context, conv *conversation) {
	c.mu.Lock()
	c.doubt = min(2*max(c.doubt, doubtMin), ackTime)
	c.mu.Unlock()
	// What says goodbye there may wait for as long as the road is dead.
	c.o.done.Go(func() { c.n.cfg.Host.Abandon(ctx, conv.stream.Conn()) })
}

// batch is what one look at the outbox found.
type batch struct {
	envelopes [][]byte  // due, and put in flight
	full      bool      // the window is, and there may be more
	next      time.Time // when something is due that is not yet; zero: nothing
}

// offer writes what is due and fits the window.
func (c *courier) offer(ctx context.Context, conv *conversation, last *int64) (batch, error) {
	l, err := c.load(ctx, last)
	if err != nil {
		return batch{}, err
	}
	var turn []byte
	for i, e := range l.envelopes {
		turn = stream.AppendFrame(turn, stream.Frame{Type: stream.TypeEnvelope, Envelope: e})
		if len(turn) < writeTurn && i < len(l.envelopes)-1 {
			continue
		}
		if err := conv.writeBytes(turn); err != nil {
			return batch{}, err
		}
		turn = turn[:0]
	}
	return l, nil
}

// baton is a mutex that may be held while the disk is waited for. SQLite sleeps
// when it finds its file busy, and in a testing/synctest bubble no sleep ends
// while somebody waits for a sync.Mutex.
type baton chan struct{}

func newBaton() baton { return make(baton, 1) }

func (b baton) Lock()   { b <- struct{}{} }
func (b baton) Unlock() { <-b }

// load puts what is due and fits the window in flight, and returns it.
func (c *courier) load(ctx context.Context, last *int64) (l batch, err error) {
	c.offering.Lock()
	defer c.offering.Unlock()
	c.mu.Lock()
	flight, window := slices.Clone(c.flight), c.window
	c.mu.Unlock()
	room, size := maxInFlight, 0
	for _, f := range flight {
		if !f.acked {
			room--
			size += f.size
		}
	}
	if room <= 0 || size >= window {
		return batch{full: true}, nil
	}
	var rows []store.DeliveryRow
	if err := c.n.view(ctx, func(tx *store.Tx) (err error) {
		rows, l = nil, batch{}
		if paused, err := isPaused(tx, c.device); paused || err != nil {
			return err
		}
		now := c.n.age.now()
		if rows, err = tx.Outbox(c.device[:], *last, now, now, room); err != nil {
			return err
		}
		due, ok, err := tx.NextDue(c.device[:])
		if in := time.Duration(due-now) * time.Millisecond; ok && in > 0 {
			l.next = time.Now().Add(in)
		}
		return err
	}); err != nil {
		return batch{}, err
	}
	l.full = len(rows) == room
	for _, d := range rows {
		if slices.ContainsFunc(flight, func(f inFlight) bool { return f.id == d.ID }) {
			*last = d.ID
			continue
		}
		if c.held(d.ID) {
			continue
		}
		if size > 0 && size+len(d.Envelope) > window {
			l.full = true
			break
		}
		l.envelopes = append(l.envelopes, d.Envelope)
		size += len(d.Envelope)
		offers, err := timesTaken(d.Attempts)
		if err != nil {
			return batch{}, err
		}
		flight = append(flight, inFlight{
			id: d.ID, control: d.Message == nil, offers: offers, size: len(d.Envelope), at: time.Now(),
		})
		*last = d.ID
	}
	if len(l.envelopes) > 0 {
		c.setFlight(flight)
	}
	return l, nil
}

// isPaused says whether nothing is to leave for a device: its contact is
// blocked, or an alarm waits for the user.
func isPaused(tx *store.Tx, device identity.DeviceHash) (bool, error) {
	d, err := tx.Device(device[:])
	if err != nil {
		return false, err
	}
	c, err := tx.Contact(d.Contact)
	return c.Blocked || c.Alarm != "", err
}

// acknowledged marks the next n envelopes in flight: they leave the window, and
// stay until settle has noted them. What was acknowledged soon widens the window by
// its size, and what was only after long narrows it.
func (c *courier) acknowledged(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	flight := slices.Clone(c.flight)
	size := 0
	for _, f := range flight {
		if !f.acked {
			size += f.size
		}
	}
	filled := size > c.window/2 // one that is not says nothing of the line
	for i := range flight {
		f := &flight[i]
		if n <= 0 || f.acked {
			continue
		}
		f.acked = true
		n--
		switch took := time.Since(f.at); {
		case took < quickAck && filled:
			c.window += f.size
		case took > slowAck:
			c.window -= f.size
		}
	}
	c.window = min(max(c.window, firstInFlight), maxInFlightBytes)
	c.flight, c.failures, c.retry, c.doubt = flight, 0, time.Time{}, doubtMin
}

// landed says whether nothing is in flight.
func (c *courier) landed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.flight) == 0
}

// unsettled is how many envelopes were taken and are not noted yet.
func (c *courier) unsettled() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.flight {
		if f.acked {
			n++
		}
	}
	return n
}

// settle notes what the device's daemon has taken. That is done a moment after
// it was taken, because by then the receipts of most are here, and those need
// no note of their own.
func (c *courier) settle(ctx context.Context, conv *conversation) bool {
	c.mu.Lock()
	done := slices.DeleteFunc(slices.Clone(c.flight), func(f inFlight) bool { return !f.acked })
	c.mu.Unlock()
	if len(done) == 0 {
		return true
	}
	err := c.n.update(ctx, func(w *work) error {
		for _, f := range done {
			if err := w.taken(f, conv.road); err != nil {
				return err
			}
		}
		return nil
	})
	c.mu.Lock()
	rest := slices.DeleteFunc(slices.Clone(c.flight), func(f inFlight) bool {
		return slices.ContainsFunc(done, func(d inFlight) bool { return d.id == f.id })
	})
	c.mu.Unlock()
	c.setFlight(rest)
	if err != nil && ctx.Err() == nil {
		c.n.log.Warn("what a contact took could not be noted; it is offered again", "cause", err)
	}
	return err == nil
}

// noteOffered notes of what was offered and not acknowledged that it may have
// arrived: it cannot be cancelled any more.
func (c *courier) noteOffered(ctx context.Context, conv *conversation) {
	c.mu.Lock()
	unsure := slices.DeleteFunc(slices.Clone(c.flight), func(f inFlight) bool { return f.acked || f.control })
	c.mu.Unlock()
	if len(unsure) == 0 {
		return
	}
	if err := c.n.update(ctx, func(w *work) error {
		for _, f := range unsure {
			d, err := w.tx.DeliveryByID(f.id)
			if ok, err := found(err); err != nil {
				return err
			} else if !ok || d.State != store.DeliveryQueued {
				continue
			}
			if d.Attempts, err = addAttempt(d.Attempts, attempt{f.at.UnixMilli(), conv.road, resultOffered}); err != nil {
				return err
			}
			if err := w.tx.SaveDelivery(d); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		c.n.log.Warn("the ledger could not be kept", "cause", err)
	}
}

// taken moves one envelope that the device's daemon has: a control message is
// done with, a message waits for its receipt.
func (w *work) taken(f inFlight, by road) error {
	if f.control {
		return w.tx.DeleteDelivery(f.id)
	}
	d, err := w.tx.DeliveryByID(f.id)
	if ok, err := found(err); !ok {
		return err
	}
	if d.State > store.DeliveryHeld {
		return nil // its receipt was quicker, and noted this
	}
	if d.Attempts, err = addAttempt(d.Attempts, attempt{f.at.UnixMilli(), by, resultTaken}); err != nil {
		return err
	}
	d.Due = w.age + offerAgain[min(f.offers, len(offerAgain)-1)].Milliseconds()
	if d.State != store.DeliveryQueued {
		return w.tx.SaveDelivery(d)
	}
	c, err := w.tx.Contact(d.Contact)
	if err != nil {
		return err
	}
	return w.moveDelivery(c, &d, store.DeliverySent, "")
}

// noteTaken adds to a delivery, whose receipt is here, the attempt that
// brought it, if that was not noted before.
func (w *work) noteTaken(d *store.DeliveryRow) (err error) {
	f, by, ok := w.n.outbox.inFlight(d.Device, d.ID)
	if !ok {
		return nil
	}
	d.Attempts, err = addAttempt(d.Attempts, attempt{f.at.UnixMilli(), by, resultTaken})
	return err
}

// better says which of two conversations with one device to keep: a device
// that was restarted has a new name, and its old conversation is dead; of two
// that were opened at the same time, the direct one, or that of the smaller name;
// else the newer.
func better(other, current *conversation) bool {
	if other.remote() != current.remote() || other.opener() == current.opener() {
		return true
	}
	if relayed := other.road.relayed(); relayed != current.road.relayed() {
		return !relayed // only the direct one is there to stay
	}
	return bytes.Compare([]byte(other.opener()), []byte(current.opener())) < 0
}

// reasonOf is a cause in words for the ledger, without anything that came from
// the network.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, errNoRecord):
		return "not found: the contact has not announced itself"
	case errors.Is(err, errNoWayIn):
		return "no community node answers"
	case errors.Is(err, stream.ErrHello):
		return "somebody else answered"
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	}
	return "unreachable"
}
