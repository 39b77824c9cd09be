package node

// What cannot be brought to a device at once is left at its mailboxes. Every
// device has, beside its courier, a depositor, which
//
//  1. waits until something is due and no conversation takes it: a moment, if
//     the device may still answer; longer for receipts alone, so that they do
//     not follow a collection at a glance,
//  2. leaves the stored envelopes at every mailbox the device has told us of,
//     the same bytes that the courier keeps offering,
//  3. counts the nodes' signed receipts: with enough of them a message is
//     held. Until the end-to-end receipt it is kept all the same, and after an
//     hour, six hours, a day, and daily from then on the nodes have to prove
//     that they still have it, and get it again if they do not.
//
// No node learns who deposits: every round has a transport name of its own, and
// rounds for different contacts do not meet at one node in one moment
// (threats D03).

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/mailbox"
	"github.com/kith-im/kith/protocol/rendezvous"
)

const (
	// holdersWanted is how many nodes must hold a message before it counts as
	// held, unless its recipient has fewer: one may lie.
	holdersWanted = 2
	// maxHolders bounds the nodes that get a copy.
	maxHolders = 3

	// directBudget is how long a device that may still answer directly is
	// given before mailboxes are used beside.
	directBudget = 3 * time.Second
	// Receipts alone wait between receiptsMin and receiptsMax.
	receiptsMin = 5 * time.Second
	receiptsMax = 30 * time.Second
	// Deposits for different contacts at one node are between laneMin and
	// laneMax apart.
	laneMin = 2 * time.Second
	laneMax = 8 * time.Second

	// A round that did not find enough nodes is repeated after depositMin,
	// doubling to depositMax.
	depositMin = 5 * time.Second
	depositMax = 30 * time.Minute
	// depositTime bounds one round, and maxRounds how many run at one time: each
	// has a host of its own.
	depositTime = 5 * time.Minute
	// nextCopy is how long one node has a line through bridges for itself, from the
	// last that was left there, and lastCopy how long in all.
	nextCopy  = 4 * time.Second
	lastCopy  = 20 * time.Second
	maxRounds = 8
	// depositBatch is how many bytes go to one node at one time: while they do, nothing
	// else is heard, and on a slow line a conversation may have opened meanwhile.
	depositBatch = 64 << 10
)

// bytesSpent is why nothing but a conversation may use the network any more.
const bytesSpent = "the bytes of this day are used up, which ends at midnight UTC; see kith budget"

// depositor is the part of a courier that uses the device's mailboxes.
type depositor struct {
	c        *courier
	news     chan struct{} // something is to be looked at
	anew     atomic.Bool   // the network, or where the mailboxes are, has changed
	failures int
	since    time.Time     // when something first waited; zero: nothing does
	patience time.Duration // of receipts alone, from since
	retry    time.Time
}

// run leaves at mailboxes what is due until ctx ends.
func (p *depositor) run(ctx context.Context) {
	for {
		wait, err := p.next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil && wait <= 0 {
			p.round(ctx)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-p.news:
		case <-timer.C:
		case <-p.c.o.draining:
			timer.Stop()
			return
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// talks says whether a conversation with the device is open.
func (c *courier) talks() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conv != nil
}

// never again by itself.
const idleDeposit = 24 * time.Hour

// next is how long it takes until a round is due.
func (p *depositor) next(ctx context.Context) (wait time.Duration, err error) {
	c := p.c
	c.mu.Lock()
	missed := c.failures > 0
	c.mu.Unlock()
	if c.talks() { // the courier has us look again when it ends
		p.since = time.Time{}
		return idleDeposit, nil
	}
	var due int64
	var message, open bool
	err = c.n.view(ctx, func(tx *store.Tx) error {
		open = false
		if _, err := tx.DeviceBoxes(c.device[:]); err != nil {
			_, err = found(err)
			return err
		}
		if paused, err := isPaused(tx, c.device); paused || err != nil {
			return err
		}
		due, message, open, err = tx.NextDeposit(c.device[:], c.n.age.now())
		return err
	})
	if err != nil {
		return retryMin, err
	}
	wait = time.Duration(due-c.n.age.now()) * time.Millisecond
	switch {
	case !open:
		p.since = time.Time{}
		return idleDeposit, nil
	case wait > 0:
		p.since = time.Time{}
		return wait, nil
	}
	if p.anew.Swap(false) {
		p.failures, p.retry = 0, time.Time{}
	}
	if p.since.IsZero() {
		p.since, p.patience = time.Now(), receiptsMin+rand.N(receiptsMax-receiptsMin)
	}
	patience := p.patience
	switch {
	case message && missed:
		patience = 0
	case message:
		patience = directBudget
	}
	return max(time.Until(p.since.Add(patience)), time.Until(p.retry)), nil
}

// offer is an envelope of a round.
type offer struct {
	id      int64
	kept    bool      // a node has proved that it still has it
	missing []peer.ID // nodes that had signed for it and do not have it
	refused string    // why one did not take it
}

// round leaves everything that is due at all of the device's mailboxes.
func (p *depositor) round(ctx context.Context) {
	c := p.c
	select {
	case c.o.rounds <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-c.o.rounds }()
	ctx, cancel := context.WithTimeout(ctx, depositTime)
	defer cancel()
	p.since = time.Time{}
	nodes, err := c.mailboxes(ctx)
	if err != nil || len(nodes) == 0 {
		p.failed()
		return
	}
	host, done, err := c.n.modes.errand()
	if err != nil {
		c.n.log.Warn("mailboxes cannot be used", "cause", err)
		p.failed()
		return
	}
	defer done()
	r := &depositRound{p: p, host: host, n: len(nodes), went: make(chan struct{}, 1), offers: make(map[int64]*offer)}
	var all sync.WaitGroup
	for _, info := range c.inTurn(nodes) {
		over := make(chan struct{})
		all.Go(func() {
			defer close(over)
			r.visit(ctx, info)
		})
		r.pause(ctx, over)
	}
	all.Wait()
	enough, err := r.finish(context.WithoutCancel(ctx))
	switch {
	case err == nil && enough:
		p.failures, p.retry = 0, time.Time{}
	case c.talks(): // which cut the round short; if nothing comes of it there is another at once
	default:
		p.failed()
	}
}

// inTurn are nodes in the order in which they get their copies: through bridges the
// one first that we are connected to, and last those that others bring mail to.
func (c *courier) inTurn(nodes []peer.AddrInfo) []peer.AddrInfo {
	if !c.n.modes.censored() {
		return nodes
	}
	rank := func(info peer.AddrInfo) int {
		switch {
		case c.n.connected(info.ID):
			return 0
		case len(c.n.route(info).Addrs) > 0:
			return 1
		}
		return 2
	}
	nodes = slices.Clone(nodes)
	slices.SortStableFunc(nodes, func(a, b peer.AddrInfo) int { return cmp.Compare(rank(a), rank(b)) })
	return nodes
}

// pause lets a visit end before the next begins, where all go through bridges and
// would share one line: with one whole copy the message is there, with three
// halves it is not. One that gets nowhere, or takes very long, has the next beside it.
func (r *depositRound) pause(ctx context.Context, over <-chan struct{}) {
	c := r.p.c
	if !c.n.modes.censored() {
		return
	}
	timer := time.NewTimer(nextCopy)
	defer timer.Stop()
	for end := time.Now().Add(lastCopy); time.Now().Before(end); timer.Reset(nextCopy) {
		select {
		case <-r.went:
			continue
		case <-over:
		case <-timer.C:
		case <-c.o.draining:
		case <-ctx.Done():
		}
		return
	}
}

// failed holds the next round back.
func (p *depositor) failed() {
	pause := min(depositMin<<min(p.failures, 20), depositMax)
	p.failures++
	p.retry = time.Now().Add(pause/2 + rand.N(pause))
}

// mailboxes are the nodes that a device has told us of.
func (c *courier) mailboxes(ctx context.Context) (nodes []peer.AddrInfo, err error) {
	err = c.n.view(ctx, func(tx *store.Tx) (err error) {
		nodes, err = c.n.mailboxesOf(tx, c.device[:])
		return err
	})
	return nodes, err
}

// countMailboxes is how many mailboxes a device has told us of.
func countMailboxes(tx *store.Tx, device []byte) (int, error) {
	b, err := tx.DeviceBoxes(device)
	if ok, err := found(err); !ok {
		return 0, err
	}
	set, err := mailbox.ParseSet(b)
	if err != nil {
		return 0, errors.Join(store.ErrDamaged, err)
	}
	return len(set.Nodes), nil
}

// mailboxesOf are the mailboxes that a device has told us of and that we may
// dial, or have others bring mail to, at most maxHolders: in the order of the
// set, but those whose receipts do not count come last.
func (n *Node) mailboxesOf(tx *store.Tx, device []byte) (nodes []peer.AddrInfo, err error) {
	b, err := tx.DeviceBoxes(device)
	if ok, err := found(err); !ok {
		return nil, err
	}
	set, err := mailbox.ParseSet(b)
	if err != nil {
		return nil, errors.Join(store.ErrDamaged, err)
	}
	var doubtful []peer.AddrInfo
	for _, address := range set.Nodes { // each another node
		info, err := toldInfo(address)
		if err != nil || len(n.route(info).Addrs) == 0 && !n.carries(info) {
			continue
		}
		k, err := tx.Keeper([]byte(info.ID))
		if err != nil {
			return nil, err
		}
		if trusted(k, n.age.now()) {
			nodes = append(nodes, info)
		} else {
			doubtful = append(doubtful, info)
		}
	}
	nodes = append(nodes, doubtful...)
	return nodes[:min(len(nodes), maxHolders)], nil
}

// depositRound is one round at all of a device's mailboxes.
type depositRound struct {
	p    *depositor
	host *transport.Host
	n    int           // nodes
	went chan struct{} // something was left at one

	mu     sync.Mutex
	offers map[int64]*offer
}

func (r *depositRound) of(id int64) *offer {
	o := r.offers[id]
	if o == nil {
		o = &offer{id: id}
		r.offers[id] = o
	}
	return o
}

// visit leaves what is due at one node, a batch at a time.
func (r *depositRound) visit(ctx context.Context, info peer.AddrInfo) {
	c := r.p.c
	leave, err := c.n.mail.enter(ctx, info.ID, c.device)
	if err != nil {
		return
	}
	defer leave()
	after := int64(0)
	m, err := c.n.reachMail(ctx, r.host, info)
	if err != nil {
		// It says nothing of the node: the address is what the device told us.
		why := "the mailbox does not answer"
		if c.n.cfg.Host.Meter().Spent() {
			why = bytesSpent
		}
		if refused := new(refusal); errors.As(err, &refused) {
			why = refusalText(refused.Why)
		}
		r.miss(ctx, info.ID, why)
		return
	}
	defer m.close()
	for {
		if c.talks() { // it takes the rest itself
			return
		}
		rows, err := r.load(ctx, info.ID, &after)
		if err != nil || len(rows) == 0 {
			return
		}
		if err := r.leave(ctx, m, info.ID, rows); err != nil {
			r.unanswered(rows)
			if ctx.Err() == nil {
				c.n.log.Debug("leaving envelopes at a mailbox ended early")
				r.note(ctx, func(w *work) error { return w.faulty(info.ID, err) })
			}
			return
		}
		c.n.rush.end(c.device)
		poke(r.went)
	}
}

// unanswered notes that a node may have envelopes, and may not.
func (r *depositRound) unanswered(rows []store.DepositRow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, row := range rows {
		r.of(row.ID).refused = resultOffered
	}
}

// miss notes that a node could not be used, for all that is due.
func (r *depositRound) miss(ctx context.Context, node peer.ID, why string) {
	after := int64(0)
	for {
		rows, err := r.load(ctx, node, &after)
		if err != nil || len(rows) == 0 {
			break
		}
		r.mu.Lock()
		for _, row := range rows {
			if o := r.of(row.ID); o.refused != resultOffered {
				o.refused = why
			}
		}
		r.mu.Unlock()
	}
}

func (r *depositRound) note(ctx context.Context, fn func(*work) error) {
	if err := r.p.c.n.update(context.WithoutCancel(ctx), fn); err != nil {
		r.p.c.n.log.Warn("what a mailbox did could not be noted", "cause", err)
	}
}

// load returns the next envelopes that a node is to get, or has to prove.
func (r *depositRound) load(ctx context.Context, node peer.ID, after *int64) (rows []store.DepositRow, err error) {
	c := r.p.c
	c.offering.Lock() // nothing is cancelled between this and the next line that matters
	defer c.offering.Unlock()
	for len(rows) == 0 {
		var due []store.DepositRow
		if err := c.n.view(ctx, func(tx *store.Tx) (err error) {
			due, err = tx.Deposits(c.device[:], []byte(node), *after, c.n.age.now(), maxInFlight)
			return err
		}); err != nil || len(due) == 0 {
			return nil, err
		}
		size := 0
		for _, d := range due {
			if size > 0 && size+len(d.Envelope) > depositBatch {
				break
			}
			*after = d.ID
			// Cancelled; or too few have taken it, and this one has, or proved it, lately.
			if c.held(d.ID) || d.Held && d.Rounds == 0 && c.n.age.now()-d.Asked < offerAgain[0].Milliseconds() {
				continue
			}
			rows, size = append(rows, d), size+len(d.Envelope)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range rows {
		c.left[d.ID] = true
	}
	return rows, nil
}

// leave gives a node envelopes and keeps its receipts.
func (r *depositRound) leave(ctx context.Context, m mailer, node peer.ID, rows []store.DepositRow) error {
	n := r.p.c.n
	ask, err := nonce(n.self.rand)
	if err != nil {
		return err
	}
	var requests []mailbox.Frame
	for _, d := range rows {
		if d.Held {
			requests = append(requests, mailbox.AuditFor(d.Envelope, ask))
		} else {
			requests = append(requests, &mailbox.Deposit{Envelope: d.Envelope})
		}
	}
	answers, err := m.exchange(requests)
	if err != nil {
		return err
	}
	// What it should have and has not, it gets again.
	var again []int
	requests = nil
	for i, a := range answers {
		if refused, ok := a.(*mailbox.Refused); ok && rows[i].Held && refused.Why == mailbox.RefusedUnknown {
			again = append(again, i)
			requests = append(requests, &mailbox.Deposit{Envelope: rows[i].Envelope})
		}
	}
	more, err := m.exchange(requests)
	if err != nil {
		return err
	}
	lost := make(map[int64]bool)
	for j, i := range again {
		answers[i], rows[i].Held = more[j], false
		lost[rows[i].ID] = true
	}
	kept, gone, refused := make(map[int64]bool), make(map[int64]bool), make(map[int64]string)
	err = n.update(context.WithoutCancel(ctx), func(w *work) error {
		clear(kept)
		clear(gone)
		clear(refused)
		if m.direct() {
			if err := w.served(node); err != nil {
				return err
			}
		}
		trusted, err := w.trusted(node)
		if err != nil {
			return err
		}
		for i, d := range rows {
			if now, err := w.tx.Envelope(d.ID); err != nil || !bytes.Equal(now, d.Envelope) {
				if _, err := found(err); err != nil {
					return err
				}
				continue // receipted, or sealed anew, in the meantime: this says nothing of it
			}
			if lost[d.ID] && m.direct() {
				gone[d.ID] = true
				if err := w.tx.DropHolding(d.ID, []byte(node)); err != nil {
					return err
				}
			}
			switch a := answers[i].(type) {
			case *mailbox.Proof:
				if ok := d.Held && a.Verify(d.Envelope, ask); !ok && !m.direct() {
					continue
				} else if !ok {
					return w.strike(node, strikeLie, "it gave a false proof that it keeps a message")
				}
				if err := w.tx.ProveHolding(d.ID, []byte(node), w.age); err != nil {
					return err
				}
				// A proof is no signature: whoever carried the envelope there can make one.
				kept[d.ID] = trusted && m.direct()
			case *mailbox.Stored:
				if ok := !d.Held && a.Verify(m.key(), d.Envelope); !ok && !m.direct() {
					continue
				} else if !ok {
					return w.strike(node, strikeLie, "it gave a false receipt")
				}
				if a.Hours == 0 {
					refused[d.ID] = "the mailbox keeps nothing for an hour"
					continue
				}
				if err := w.heldBy(d.ID, node, a.Hours, r.n); err != nil {
					return err
				}
			case *mailbox.Refused:
				refused[d.ID] = refusalText(a.Why)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range rows {
		o := r.of(d.ID)
		o.kept = o.kept || kept[d.ID]
		if gone[d.ID] {
			o.missing = append(o.missing, node)
		}
		if why := refused[d.ID]; why != "" && o.refused != resultOffered {
			o.refused = why
		}
	}
	return nil
}

// exchange sends requests and returns as many answers. An answer of a wrong
// type counts as none.
func (m *mailStream) exchange(requests []mailbox.Frame) ([]mailbox.Frame, error) {
	if len(requests) == 0 {
		return nil, nil
	}
	if err := m.write(requests...); err != nil {
		return nil, err
	}
	answers := make([]mailbox.Frame, len(requests))
	for i := range requests {
		m.in.SetIdle(mailAnswerTime)
		a, err := m.read()
		if err != nil {
			return nil, err
		}
		if !isVerdict(a) {
			return nil, errOddAnswer
		}
		answers[i] = a
	}
	return answers, nil
}

// holders is how many nodes count as holding a delivery at an age, and until which
// age the first of them does: those whose receipts are good, and count.
func holders(tx *store.Tx, delivery, age int64) (nodes int, until int64, err error) {
	all, err := tx.Holdings(delivery, age)
	if err != nil {
		return 0, 0, err
	}
	for _, h := range all {
		k, err := tx.Keeper(h.Node)
		if err != nil {
			return 0, 0, err
		}
		if !trusted(k, age) {
			continue
		}
		if nodes++; nodes == 1 || h.Until < until {
			until = h.Until
		}
	}
	return nodes, until, nil
}

// heldBy notes a node's receipt for an envelope; with enough of them the
// message is held.
func (w *work) heldBy(id int64, node peer.ID, hours uint16, nodes int) error {
	d, err := w.tx.DeliveryByID(id)
	if ok, err := found(err); !ok || !d.Open {
		return err // its end-to-end receipt was quicker
	}
	if err := w.tx.AddHolding(id, []byte(node), w.age, w.age+(time.Duration(hours)*time.Hour).Milliseconds()); err != nil {
		return err
	}
	k, _, err := holders(w.tx, id, w.age)
	if err != nil || d.Message == nil || k < min(holdersWanted, nodes) {
		return err
	}
	c, err := w.tx.Contact(d.Contact)
	if err != nil {
		return err
	}
	return w.moveDelivery(c, &d, store.DeliveryHeld, "")
}

// finish says when what was offered is due again, and notes in the ledger what
// came of it. enough is whether all of it has found enough nodes.
func (r *depositRound) finish(ctx context.Context) (enough bool, err error) {
	c := r.p.c
	enough = true
	all := make([]*offer, 0, len(r.offers))
	for _, o := range r.offers {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *offer) int { return int(a.id - b.id) })
	if len(faithless(all)) > 0 {
		err = c.n.update(ctx, func(w *work) error {
			open, err := w.unreceipted(all)
			if err != nil {
				return err
			}
			for _, node := range faithless(open) {
				if err := w.doubtDaily(node, strikeLoss, "it lost a message that it had signed for"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for batch := range slices.Chunk(all, maxBatch) {
		err = errors.Join(err, c.n.update(ctx, func(w *work) error {
			for _, o := range batch {
				ok, err := w.deposited(o, r.n)
				if err != nil {
					return err
				}
				enough = enough && ok
			}
			return nil
		}))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.left)
	return enough && len(all) > 0, err
}

// unreceipted are the offers for which no receipt came while the round went on.
func (w *work) unreceipted(offers []*offer) (open []*offer, err error) {
	for _, o := range offers {
		d, err := w.tx.DeliveryByID(o.id)
		if ok, err := found(err); err != nil {
			return nil, err
		} else if ok && d.Open {
			open = append(open, o)
		}
	}
	return open, nil
}

// faithless are the nodes that lost what another has kept: they have not kept
// their word. If none has it, its recipient does: they come for all of them at one
// time. One who was interrupted then has emptied one node and not another, which
// shows in every message and in every round of a day: it counts once.
func faithless(offers []*offer) (nodes []peer.ID) {
	for _, o := range offers {
		if !o.kept {
			continue
		}
		for _, node := range o.missing {
			if !slices.Contains(nodes, node) {
				nodes = append(nodes, node)
			}
		}
	}
	return nodes
}

// deposited ends a round for one envelope, and says whether enough of nodes
// hold it.
func (w *work) deposited(o *offer, nodes int) (enough bool, err error) {
	d, err := w.tx.DeliveryByID(o.id)
	if ok, err := found(err); !ok || !d.Open {
		return true, err
	}
	k, until, err := holders(w.tx, o.id, w.age)
	if err != nil {
		return false, err
	}
	rounds, err := w.tx.DepositRounds(o.id)
	if err != nil {
		return false, err
	}
	enough = k >= min(holdersWanted, nodes)
	if d.Message == nil && (k == nodes || enough && rounds > 0) {
		return true, w.tx.DeleteDelivery(o.id)
	}
	due := w.age // as soon as the depositor tries again
	if enough {
		due = min(due+offerAgain[min(rounds, len(offerAgain)-1)].Milliseconds(), until) // a receipt is good for a time
		rounds++
	}
	if err := w.tx.SetDeposit(o.id, rounds, due); err != nil || d.Message == nil {
		return enough, err
	}
	result := o.refused
	if k > 0 {
		result = fmt.Sprintf("held by %d of %d", k, nodes)
		if !enough && o.refused != "" { // why it still waits
			result += ": " + o.refused
		}
	}
	if result == "" {
		return enough, nil
	}
	if d.Attempts, err = addAttempt(d.Attempts, attempt{w.ms(), roadMailbox, result}); err != nil {
		return enough, err
	}
	return enough, w.tx.SaveDelivery(d)
}

// learnBoxes keeps where a device has its mailboxes. What it said in a session,
// or in a record that only the two of us can write, counts by its version.
// What everybody can have written who holds the same link (open) counts only
// until then.
func (w *work) learnBoxes(device identity.DeviceHash, value []byte, open bool) error {
	set, err := mailbox.ParseSet(value)
	if err != nil {
		return nil // it told nothing, or nothing that makes sense
	}
	if open {
		set.Version = 0
	}
	if value, err = set.Marshal(); err != nil {
		return err
	}
	old, err := w.tx.DeviceBoxes(device[:])
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	default:
		was, err := mailbox.ParseSet(old)
		if err != nil {
			return errors.Join(store.ErrDamaged, err)
		}
		if bytes.Equal(value, old) || set.Version < was.Version || set.Version == was.Version && !open {
			return nil
		}
	}
	w.wake[device] = true
	// What nodes hold that are not among them any more counts no longer, and what
	// too few of the others have is due.
	nodes := keepers(set)
	if err := w.tx.KeepHoldings(device[:], nodes, min(holdersWanted, len(nodes)), w.age); err != nil {
		return err
	}
	return w.tx.SaveDeviceBoxes(device[:], value)
}

// keepers are the names of a set's nodes, those known by name alone included.
func keepers(set *mailbox.Set) (nodes [][]byte) {
	for _, address := range set.Nodes {
		if info, err := toldInfo(address); err == nil {
			nodes = append(nodes, []byte(info.ID))
		}
	}
	return nodes
}

// takeRendezvous keeps what a device says of where it is found.
func (w *work) takeRendezvous(device identity.DeviceHash, c store.ContactRow, record []byte) error {
	fields, err := rendezvous.ParseFields(record)
	if err != nil {
		return nil
	}
	for _, f := range fields {
		switch f.Type {
		case rendezvous.FieldMailboxes:
			err = w.learnBoxes(device, f.Value, false)
		case rendezvous.FieldWays:
			err = w.takeWays(c, f.Value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
