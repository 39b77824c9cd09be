package node

import (
	"context"
	"sync"
	"time"

	"github.com/kith-im/kith/protocol/identity"
)

const (
	// rushTime bounds how long everything else waits for the first words to a new
	// contact, rushTalk for how long from when a conversation with it is open, in which
	// they may be on their way, and rushRest is the least that it then has until it
	// waits again.
	rushTime = 12 * time.Second
	rushTalk = 20 * time.Second
	rushRest = time.Minute
)

// rush lets the first words to a new contact go first where everything goes
// through bridges: what a newcomer sets up for itself (relays, mailboxes, records,
// further copies) takes a dozen times the bytes, and on a slow line a person would
// wait for all of it. Nothing is left out, it comes later.
type rush struct {
	n *Node

	mu      sync.Mutex
	devices map[identity.DeviceHash]*time.Timer // whom somebody waits for
	over    chan struct{}                       // closed when there are none; nil then
	until   time.Time                           // when those end that have no conversation
	rest    time.Time                           // none begins before
}

func newRush(n *Node) *rush {
	return &rush{n: n, devices: make(map[identity.DeviceHash]*time.Timer)}
}

// begin says that somebody waits for a device to get our first words.
func (r *rush) begin(d identity.DeviceHash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.devices[d] != nil || time.Now().Before(r.rest) {
		return
	}
	if r.over == nil {
		r.over, r.until = make(chan struct{}), time.Now().Add(rushTime)
	}
	r.devices[d] = time.AfterFunc(time.Until(r.until), func() { r.spend(d) })
}

// talk says that a conversation with the device is open.
func (r *rush) talk(d identity.DeviceHash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if timer := r.devices[d]; timer != nil {
		timer.Reset(rushTalk)
	}
}

// spend says that the device had its time, or its conversation, and that what is left
// of our first words goes on beside everything else.
func (r *rush) spend(d identity.DeviceHash) {
	r.mu.Lock()
	if r.devices[d] != nil {
		r.rest = time.Now().Add(rushRest)
	}
	r.mu.Unlock()
	r.end(d)
}

// end says that the device, or one of its mailboxes, has them, or that they do not
// get through soon.
func (r *rush) end(d identity.DeviceHash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	timer := r.devices[d]
	if timer == nil {
		return
	}
	timer.Stop()
	delete(r.devices, d)
	if len(r.devices) == 0 {
		close(r.over)
		r.over = nil
	}
}

// none is closed as soon as nothing has to wait.
func (r *rush) none() <-chan struct{} {
	if !r.n.modes.censored() {
		return closed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over == nil {
		return closed
	}
	return r.over
}

// noneElsewhere is none for what concerns a device: it does not wait for itself.
func (r *rush) noneElsewhere(d identity.DeviceHash) <-chan struct{} {
	r.mu.Lock()
	own := r.devices[d] != nil
	r.mu.Unlock()
	if own {
		return closed
	}
	return r.none()
}

// wait returns when nothing has to wait, or with the context's error.
func (r *rush) wait(ctx context.Context) error {
	select {
	case <-r.none():
	case <-ctx.Done():
	}
	return ctx.Err()
}

// closed is a channel that is.
var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
