package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol/identity"
)

// TestRush: in censored mode everything else waits for the first words to a new
// contact, but for no longer than rushTime, and not again soon.
func TestRush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{modes: &modes{mode: transport.Censored}}
		r := newRush(n)
		waits := func(what string, want time.Duration) {
			t.Helper()
			began := time.Now()
			if err := r.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(began); got != want {
				t.Errorf("%s: waited %v, want %v", what, got, want)
			}
		}
		alice, bob := identity.DeviceHash{1}, identity.DeviceHash{2}
		waits("nobody", 0)

		r.begin(alice)
		r.begin(bob)
		time.AfterFunc(time.Second, func() { r.end(alice) })
		time.AfterFunc(2*time.Second, func() { r.end(bob) })
		waits("two", 2*time.Second)
		r.end(alice) // a second time

		r.begin(alice)
		gone, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.wait(gone); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the wait that was given up: %v", err)
		}
		waits("one that nobody gets", rushTime-time.Second)
		r.begin(bob)
		waits("one right after", 0)
		time.Sleep(rushRest)
		r.begin(alice)
		time.AfterFunc(rushTime/2, func() { r.begin(bob) })
		waits("one that begins within another", rushTime)
		time.Sleep(rushRest)
		r.begin(alice)
		time.AfterFunc(rushTime-time.Second, func() { r.talk(alice) })
		waits("one that is talked to", rushTime-time.Second+rushTalk)
		time.Sleep(rushRest)
		r.begin(alice)
		time.AfterFunc(time.Second, func() { r.talk(alice) })
		time.AfterFunc(3*time.Second, func() { r.spend(alice) })
		waits("one whose conversation ends", 3*time.Second)
		r.begin(alice)
		waits("one right after a conversation", 0)
		time.Sleep(rushRest)
		r.begin(bob)
		select {
		case <-r.noneElsewhere(bob):
		default:
			t.Error("what is for the device of a rush waits for it")
		}
		select {
		case <-r.noneElsewhere(alice):
			t.Error("what is for another device does not wait")
		default:
		}
		n.modes.mode = transport.Open
		waits("an open network", 0)
		n.modes.mode = transport.Censored
		r.end(bob)
		waits("the end", 0)
	})
}

// TestDepositsInTurn: through bridges a mailbox has the line for itself as long as it
// takes something, for a while.
func TestDepositsInTurn(t *testing.T) {
	for name, c := range map[string]struct {
		mode  transport.Mode
		every time.Duration // something is left there
		ends  time.Duration
		want  time.Duration
	}{
		"an open network": {transport.Open, 0, time.Minute, 0},
		"soon over":       {transport.Censored, 0, time.Second, time.Second},
		"no answer":       {transport.Censored, 0, time.Minute, nextCopy},
		"over later":      {transport.Censored, 3 * time.Second, 10 * time.Second, 10 * time.Second},
		"without end":     {transport.Censored, 3 * time.Second, time.Minute, lastCopy + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &Node{modes: &modes{mode: c.mode}}
				r := &depositRound{p: &depositor{c: &courier{n: n, o: newOutbox(n)}}, went: make(chan struct{}, 1)}
				over := make(chan struct{})
				time.AfterFunc(c.ends, func() { close(over) })
				for at := c.every; at > 0 && at < c.ends; at += c.every {
					time.AfterFunc(at, func() { poke(r.went) })
				}
				began := time.Now()
				r.pause(t.Context(), over)
				if got := time.Since(began); got != c.want {
					t.Errorf("waited %v, want %v", got, c.want)
				}
			})
		})
	}
}
