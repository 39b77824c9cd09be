package main

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// stay gives a daemon that runs the address it has now for every later start.
func (h *home) stay() {
	h.t.Helper()
	var args []string
	for i := 0; i < len(h.args); i++ {
		if h.args[i] == "--listen" {
			i++
			continue
		}
		args = append(args, h.args[i])
	}
	address, _, _ := strings.Cut(h.ready.Listen[0], "/p2p/")
	h.args = append(args, "--listen", address)
	h.kill()
	h.up()
}

// TestKillMail kills, by kill -9 and at random moments, a sender, mailboxes and
// a recipient, of whom sender and recipient never run at the same time. What a
// mailbox has signed for it still has, so everything that was held arrives,
// once and in order.
func TestKillMail(t *testing.T) {
	t.Parallel()
	rounds := 8
	switch {
	case soak:
		rounds = 100
	case testing.Short():
		rounds = 2
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	n, nodes := newMailNetwork(t)
	for _, node := range nodes {
		node.stay()
	}
	a, b := mailPerson(n, nodes, "a", "ann"), mailPerson(n, nodes, "b", "ben")
	a.boxesWork(3)
	b.boxesWork(3)
	n.meet(a, "ann", b, "ben")
	b.until("all receipts have left", func() bool { return a.status().Outbox == 0 && b.status().Outbox == 0 })
	sender, recipient := newTalker(a, "ann", "ben"), newTalker(b, "ben", "ann")
	watching, hush := context.WithCancel(t.Context())
	defer hush()
	var watcher sync.WaitGroup
	watcher.Go(func() { recipient.watch(watching) })

	kills := 0
	strike := func(victim *home) {
		sender.pass(time.Duration(rng.Int64N(int64(killLate))))
		victim.kill()
		victim.up()
		kills++
	}
	b.kill()
	for range rounds {
		talking, quiet := context.WithCancel(t.Context())
		var saying sync.WaitGroup
		saying.Go(func() { sender.talk(talking) })
		strike(nodes[rng.IntN(len(nodes))])
		strike(a)
		sender.pass(time.Duration(rng.Int64N(int64(killLate))))
		quiet()
		saying.Wait()
		a.until("what was said is held", func() bool {
			for _, m := range a.read("ben") {
				if m.FromMe && m.State != "held" && m.State != "delivered" {
					return false
				}
			}
			return true
		})
		a.kill()
		b.up()
		strike(nodes[rng.IntN(len(nodes))])
		strike(b)
		b.until("everything is here", func() bool { return recipient.count() >= len(sender.queued) })
		b.kill()
		a.up()
		kills += 2
	}
	b.up()
	a.until("everything is delivered", func() bool { return sender.delivered() >= len(sender.queued)+1 })
	hush()
	watcher.Wait()
	recipient.check(sender)
	t.Logf("%d kills, %d texts", kills, len(sender.queued))
}
