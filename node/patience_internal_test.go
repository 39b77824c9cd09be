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
