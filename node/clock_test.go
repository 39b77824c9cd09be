package node_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/kith-im/kith/node/nodetest"
)

const year = 365 * 24 * time.Hour

// TestI06_ClocksOfTwo has two people whose clocks differ by most of a day, and
// stand on different sides of midnight, meet and find each other again.
func TestI06_ClocksOfTwo(t *testing.T) {
	for _, apart := range []time.Duration{-20 * time.Hour, 20 * time.Hour} {
		t.Run(apart.String(), func(t *testing.T) {
			simulate(t, 1, func(t *testing.T, w *world) {
				time.Sleep(6 * time.Hour) // the bubble begins at midnight
				alice := w.userWith("alice", nodetest.Options{Now: newClock(apart).now})
				bob := w.user("bob")
				nodetest.Befriend(alice, bob)
				alice.UntilDelivered(alice.Say("bob", "what time is it?")...)
				alice.Restart()
				bob.UntilDelivered(bob.Say("alice", "late")...)
				bob.Restart()
				alice.UntilDelivered(alice.Say("bob", "early, you mean")...)
				agree(t, alice, bob, 3)
			})
		})
	}
}

// TestI06_ClockJumps moves a clock by years, forth and back, while two people
// talk: everything is delivered, once, and nothing expires.
func TestI06_ClockJumps(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		c := newClock(0)
		alice := w.userWith("alice", nodetest.Options{Now: c.now})
		bob := w.user("bob")
		nodetest.Befriend(alice, bob)
		sent := 0
		for _, jump := range []time.Duration{10 * year, -20 * year, 10 * year, -29 * year, 29 * year, time.Hour, -time.Hour} {
			c.move(jump)
			ids := alice.Say("bob", fmt.Sprint("after ", jump))
			bob.UntilDelivered(bob.Say("alice", fmt.Sprint("and after ", jump))...)
			alice.UntilDelivered(ids...)
			sent += 2
		}
		agree(t, alice, bob, sent)
		for _, m := range alice.Messages("bob") {
			if m.State != "delivered" && m.State != "received" {
				t.Errorf("a message is %s", m.State)
			}
		}
	})
}

// TestI06_ClockOfYears: a message that waits survives a clock that is years
// wrong for a while, with restarts: it is delivered when the clock is right again.
func TestI06_ClockOfYears(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		c := newClock(0)
		alice := w.userWith("alice", nodetest.Options{Now: c.now})
		bob := w.user("bob")
		nodetest.Befriend(alice, bob)
		bob.Stop()
		ids := alice.Say("bob", "wait")
		c.move(-10 * year)
		alice.Restart()
		ids = append(alice.Say("bob", "and wait"), ids...)
		time.Sleep(10 * time.Minute)
		c.move(10 * year)
		alice.Restart()
		bob.Start()
		alice.UntilDelivered(ids...)
		agree(t, alice, bob, 2)
	})
}
