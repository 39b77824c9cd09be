package node

import (
	"sync"
	"time"
)

const (
	// dialBurst calls that fail may be made at once, and one every dialEvery from
	// then on, over all contacts (threats F12). A call that succeeds costs nothing.
	dialBurst = 16
	dialEvery = time.Second
)

// dialBudget bounds calls that lead nowhere: five hundred contacts who are away
// are no storm.
type dialBudget struct {
	mu   sync.Mutex
	left int       // calls that may be made
	next time.Time // when there is one more
}

func newDialBudget() *dialBudget { return &dialBudget{left: dialBurst} }

// take takes a call out of the budget and returns 0, or returns how long it is
// until there may be one again.
func (b *dialBudget) take(now time.Time) (wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.left < dialBurst && !now.Before(b.next) {
		b.left++
		b.next = b.next.Add(dialEvery)
	}
	if b.left == dialBurst {
		b.next = now.Add(dialEvery) // time that nobody used is not saved up
	}
	if b.left == 0 {
		return b.next.Sub(now)
	}
	b.left--
	return 0
}

// give puts a call back: it succeeded.
func (b *dialBudget) give() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(b.left+1, dialBurst)
}
