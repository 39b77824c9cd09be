package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/stream"
)

// outbox is the set of couriers.
type outbox struct {
	n        *Node
	changes  chan struct{}
	draining chan struct{}
	dials    chan struct{} // a place for each device being reached
	urgent   chan struct{} // places for those that somebody waits for
	budget   *dialBudget
	rounds   chan struct{} // a place for each round of deposits
	done     sync.WaitGroup

	mu       sync.Mutex
	couriers map[identity.DeviceHash]*courier
	added    []identity.DeviceHash
	early    map[identity.DeviceHash]*conversation // of devices whose courier has not started yet
}

func newOutbox(n *Node) *outbox {
	return &outbox{
		n: n, changes: make(chan struct{}, 1), draining: make(chan struct{}),
		dials:    make(chan struct{}, maxDials),
		urgent:   make(chan struct{}, maxUrgent),
		budget:   newDialBudget(),
		rounds:   make(chan struct{}, maxRounds),
		couriers: make(map[identity.DeviceHash]*courier),
		early:    make(map[identity.DeviceHash]*conversation),
	}
}

// open starts a courier for every known device.
func (o *outbox) open(ctx context.Context) error {
	err := o.n.view(ctx, func(tx *store.Tx) error {
		devices, err := tx.Devices(0)
		for _, d := range devices {
			o.add(identity.DeviceHash(d.Hash))
		}
		return err
	})
	if err != nil {
		return err
	}
	o.done.Go(func() { o.supervise(ctx) })
	return nil
}

// supervise starts couriers as devices become known.
func (o *outbox) supervise(ctx context.Context) {
	for {
		select {
		case <-o.changes:
		case <-ctx.Done():
			return
		}
		o.mu.Lock()
		added := o.added
		o.added = nil
		for _, d := range added {
			if c := o.couriers[d]; c != nil {
				c.hurry()
				continue
			}
			c := &courier{
				o: o, n: o.n, device: d, offering: newBaton(),
				withheld: make(map[int64]int), left: make(map[int64]bool),
				heard: make(chan struct{}, 1), news: make(chan struct{}, 1), changed: make(chan struct{}, 1), calls: make(chan *conversation, 4),
				direct: make(chan struct{}, 1),
			}
			if conv := o.early[d]; conv != nil {
				c.calls <- conv
				delete(o.early, d)
			}
			o.couriers[d] = c
			c.depositor = &depositor{c: c, news: make(chan struct{}, 1)}
			o.done.Go(func() {
				c.run(ctx)
				o.mu.Lock()
				defer o.mu.Unlock()
				delete(o.couriers, d)
				c.part()
			})
		}
		o.mu.Unlock()
	}
}

// add makes sure that a device has a courier, and has it look at the device again.
func (o *outbox) add(d identity.DeviceHash) {
	o.mu.Lock()
	o.added = append(o.added, d)
	o.mu.Unlock()
	poke(o.changes)
}

func (o *outbox) courier(d identity.DeviceHash) *courier {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.couriers[d]
}

// wake tells a device's courier that there is something new to send.
func (o *outbox) wake(d identity.DeviceHash) {
	if c := o.courier(d); c != nil {
		poke(c.news)
		poke(c.depositor.news)
	} else {
		o.add(d)
	}
}

// attach hands a conversation that a device opened to its courier.
func (o *outbox) attach(d identity.DeviceHash, conv *conversation) {
	o.mu.Lock()
	c, superseded := o.couriers[d], (*conversation)(nil)
	if c == nil {
		superseded, o.early[d] = o.early[d], conv
	} else {
		select {
		case c.calls <- conv:
		default:
			superseded = conv
		}
	}
	o.mu.Unlock()
	if c == nil {
		o.add(d)
	}
	if superseded != nil {
		superseded.close(stream.ReasonSuperseded)
	}
}

// drain waits until what was offered is acknowledged and what is being left at
// mailboxes is there, or for d.
func (o *outbox) drain(d time.Duration) {
	close(o.draining)
	left := make(chan struct{})
	go func() {
		defer close(left)
		timer := time.NewTimer(d)
		defer timer.Stop()
		for range maxRounds { // no round begins while we hold their places
			select {
			case o.rounds <- struct{}{}:
			case <-timer.C:
				return
			}
		}
	}()
	defer func() { <-left }()
	over := make(chan struct{})
	go func() {
		o.mu.Lock()
		couriers := make([]*courier, 0, len(o.couriers))
		for _, c := range o.couriers {
			couriers = append(couriers, c)
		}
		o.mu.Unlock()
		for _, c := range couriers {
			c.idle()
		}
		close(over)
	}()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-over:
	case <-timer.C:
		o.mu.Lock()
		for _, c := range o.couriers {
			c.setFlight(nil)
		}
		o.mu.Unlock()
		<-over
	}
}

// wait returns when every courier has ended.
func (o *outbox) wait() { o.done.Wait() }

// nextTry is when a device is called next, in Unix milliseconds; 0 if nothing
// holds the call back.
func (o *outbox) nextTry(device []byte) int64 {
	c := o.courier(identity.DeviceHash(device))
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conv != nil || c.retry.IsZero() {
		return 0
	}
	return c.retry.UnixMilli()
}

// withhold keeps an envelope from being offered until release, and says whether it
// is too late for that.
func (o *outbox) withhold(device []byte, id int64) (left bool) {
	c := o.courier(identity.DeviceHash(device))
	if c == nil {
		return false
	}
	c.offering.Lock()
	defer c.offering.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left[id] || slices.ContainsFunc(c.flight, func(f inFlight) bool { return f.id == id }) {
		return true
	}
	c.withheld[id]++
	return false
}

// release ends withhold, when the store says what has become of the envelope: it is
// cancelled, or nothing came of that, and it has to leave after all.
func (o *outbox) release(device []byte, id int64) {
	c := o.courier(identity.DeviceHash(device))
	if c == nil {
		return
	}
	c.offering.Lock() // who has read the outbox before has passed the envelope over
	c.mu.Lock()
	if c.withheld[id]--; c.withheld[id] <= 0 { // below: there was no courier to withhold it from
		delete(c.withheld, id)
	}
	c.mu.Unlock()
	c.offering.Unlock()
	poke(c.news)
	poke(c.depositor.news)
}

func (c *courier) held(id int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.withheld[id] > 0
}

// inFlight returns an envelope that is on its way right now, or was taken and
// is not noted yet, and by which road.
func (o *outbox) inFlight(device []byte, id int64) (f inFlight, by road, ok bool) {
	c := o.courier(identity.DeviceHash(device))
	if c == nil {
		return f, by, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.flight, func(f inFlight) bool { return f.id == id })
	if i < 0 || c.conv == nil {
		return f, by, i >= 0
	}
	return c.flight[i], c.conv.road, true
}

// errSummoned means that a device was called and did not answer.
var errSummoned = errors.New("the device does not answer")

// summon returns the live conversation with a device; without one it has the
// device called at once and waits.
func (o *outbox) summon(ctx context.Context, device []byte) (*conversation, error) {
	c := o.courier(identity.DeviceHash(device))
	if c == nil {
		return nil, errSummoned
	}
	reply := make(chan *conversation, 1)
	c.mu.Lock()
	if c.conv != nil {
		defer c.mu.Unlock()
		return c.conv, nil
	}
	c.summons = append(c.summons, reply)
	c.retry = time.Time{}
	c.mu.Unlock()
	poke(c.changed)
	select {
	case conv := <-reply:
		if conv == nil {
			return nil, errSummoned
		}
		return conv, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// answerSummons tells those who wait for a conversation how it went.
func (c *courier) answerSummons(conv *conversation) {
	c.mu.Lock()
	waiting := c.summons
	c.summons = nil
	c.mu.Unlock()
	for _, w := range waiting {
		w <- conv
	}
}
