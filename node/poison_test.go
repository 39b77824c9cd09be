package node_test

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
)

// TestI07_Poison lets the program fail on some envelopes: a row of the store is
// damaged so that reading it panics. Each of them is set aside alone. Those
// that arrive beside it are stored, nobody waits, and it stops nobody else.
func TestI07_Poison(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		mallory := w.user("mallory")
		nodetest.Befriend(bob, mallory)

		door := w.dial(t, bob, pairKey(t, bob, "mallory"))

		// A session whose id is too short to be one.
		tag, id := noise(16), []byte{1, 2, 3}
		row := slices.Clone(sessions(t, bob, "mallory"))[0]
		row.ID, row.Pair = id, noise(32)
		if err := bob.Store.Update(context.Background(), func(tx *store.Tx) error {
			if err := tx.CreateSession(row); err != nil {
				return err
			}
			return tx.AddSessionTag(tag, id, 1)
		}); err != nil {
			t.Fatal(err)
		}
		poison := append(bytes.Clone(tag), noise(1024-16)...)

		// Poison on its own stream, and between the envelopes of another contact.
		door.send(t, poison, poison, poison)
		w.tamper(alice.IP, bob.IP, func(e []byte) [][]byte { return [][]byte{poison, e, poison} })
		alice.UntilDelivered(alice.Say("bob", numbered("between", 20)...)...)
		time.Sleep(time.Minute)
		if heard := door.hangUp(); len(heard) != 0 {
			t.Errorf("%d envelopes came back", len(heard))
		}
		bob.UntilDelivered(bob.Say("alice", "nothing happened")...)
		agree(t, alice, bob, before+21)
		said := 0
		for _, e := range bob.Events(0) {
			if e.Type == "health" {
				said++
			}
		}
		if said != 1 {
			t.Errorf("the user was told %d times, want once an hour", said)
		}
		// So it is after a restart.
		bob.Restart()
		alice.UntilDelivered(alice.Say("bob", "still nothing")...)
		agree(t, alice, bob, before+22)
	})
}
