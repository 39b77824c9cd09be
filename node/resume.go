package node

import (
	"context"
	"crypto/rand"
	"sync"
	"time"
)

const (
	// A machine that slept is noticed by the clock on the wall, which goes on
	// while a process does not: a tick of wakeTick that took sleepGap longer.
	wakeTick = 2 * time.Second
	sleepGap = 5 * time.Second

	// reviveTime is how long a conversation has to answer after that; what does
	// not answer is dead, whatever the system thinks of its connection.
	reviveTime = 3 * time.Second

	// reviveVeiled is that through a bridge, where what is under a conversation is
	// found dead and replaced without it.
	reviveVeiled = 12 * time.Second
)

// watch notices when the machine has slept, until ctx ends.
func (n *Node) watch(ctx context.Context) {
	tick := time.NewTicker(wakeTick)
	defer tick.Stop()
	last := time.Now().Round(0) // by the wall
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now().Round(0)
		if now.Sub(last) > wakeTick+sleepGap {
			n.log.Debug("the machine has slept")
			n.revive(ctx)
		}
		last = now
	}
}

// revive tries everything again at once: the machine has slept, or is on another
// network. Conversations that do not answer soon are ended, and what was not
// reached before may be now.
func (n *Node) revive(ctx context.Context) {
	n.cfg.Host.ForgetFailures()
	if n.cfg.Lookups != nil {
		n.cfg.Lookups.ForgetFailures()
	}
	n.outbox.hurry()
	n.mail.hurry()
	n.outbox.revive(ctx)
}

// revive ends the conversations that do not answer within reviveTime, or reviveVeiled.
func (o *outbox) revive(ctx context.Context) {
	patience := reviveTime
	if o.n.modes.censored() {
		patience = reviveVeiled
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var live []*conversation
	o.mu.Lock()
	for _, c := range o.couriers {
		c.mu.Lock()
		if c.conv != nil {
			live = append(live, c.conv)
		}
		c.mu.Unlock()
	}
	o.mu.Unlock()
	var asking sync.WaitGroup
	defer asking.Wait()
	for _, conv := range live {
		asking.Go(func() {
			var token [8]byte
			_, _ = rand.Read(token[:])
			if _, err := conv.ping(ctx, token); err != nil {
				conv.reset()
			}
		})
	}
}
