package node

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPatience: a conversation that takes nothing is given up soon, but not while
// envelopes arrive on it, unless it is deaf for long.
func TestPatience(t *testing.T) {
	for _, test := range []struct {
		name    string
		size    int           // bytes in flight
		offered time.Duration // ago
		heard   time.Duration // ago; 0: never
		arrived time.Duration // ago; 0: never
		stalled bool
	}{
		{"just offered", 1 << 10, time.Second, 0, 0, false},
		{"nothing is heard", 1 << 10, 10 * time.Second, 0, 0, true},
		{"much takes longer", 64 << 10, 10 * time.Second, 0, 0, false},
		{"something was acknowledged", 1 << 10, 10 * time.Second, time.Second, 0, false},
		{"envelopes arrive", 1 << 10, 10 * time.Second, 0, time.Second, false},
		{"they arrived before", 1 << 10, 10 * time.Second, 0, 11 * time.Second, true},
		{"they do not any more", 1 << 10, 20 * time.Second, 0, 10 * time.Second, true},
		{"deaf for long", 1 << 10, deafTime + 10*time.Second, 0, time.Second, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Hour)
				ago := func(d time.Duration) (at time.Time) {
					if d > 0 {
						at = time.Now().Add(-d)
					}
					return at
				}
				c := &courier{flight: []inFlight{{size: test.size, at: ago(test.offered)}}}
				_, ok, stalled := c.patience(time.Time{}, ago(test.offered), ago(test.heard), ago(test.arrived))
				if stalled != test.stalled || ok == stalled {
					t.Errorf("stalled: %v, ok: %v", stalled, ok)
				}
			})
		})
	}
}

// TestWindow: what is in flight takes a slow line seconds, and a fast one has as
// much as is allowed.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 8 << 10
		c := &courier{}
		c.setConv(&conversation{})
		send := func(rate, count int) { // bytes a second, one after another
			for range count {
				for flying := len(c.flight) * size; flying == 0 || flying+size <= c.window; flying += size {
					c.flight = append(c.flight, inFlight{size: size, at: time.Now()})
				}
				time.Sleep(time.Duration(size) * time.Second / time.Duration(rate))
				c.acknowledged(1)
				c.flight = c.flight[1:]
			}
		}
		const slow = 16 << 10
		send(slow, 100)
		if takes := c.window / slow; c.window < firstInFlight || takes > 8 {
			t.Errorf("%d bytes are in flight on a slow line, for %d seconds", c.window, takes)
		}
		send(10<<20, 200)
		if c.window != maxInFlightBytes {
			t.Errorf("%d bytes are in flight on a fast line, of %d", c.window, maxInFlightBytes)
		}
		send(slow, 400)
		if takes := c.window / slow; takes > 9 {
			t.Errorf("%d bytes are in flight on a line that has become slow, for %d seconds", c.window, takes)
		}
		c.setConv(&conversation{})
		if c.window != firstInFlight {
			t.Errorf("the next conversation begins with %d bytes in flight", c.window)
		}
	})
}

// TestWindowUnfilled: single texts, each acknowledged before the next, say nothing
// of how much a line takes.
func TestWindowUnfilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &courier{}
		c.setConv(&conversation{})
		for range 1000 {
			c.flight = []inFlight{{size: 1 << 10, at: time.Now()}}
			time.Sleep(500 * time.Millisecond)
			c.acknowledged(1)
		}
		if c.window != firstInFlight {
			t.Errorf("%d bytes may be in flight, of which never more than 1024 were", c.window)
		}
	})
}
