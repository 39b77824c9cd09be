package node_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
)

// texts are count texts of one person.
func texts(who string, count int) (all []string) {
	for i := range count {
		all = append(all, fmt.Sprintf("%s %d", who, i+1))
	}
	return all
}

// housed waits until u has count open boxes.
func housed(u *nodetest.User, count int) {
	u.Until(fmt.Sprintf("%d boxes are open", count), func() bool {
		open := 0
		if err := u.Store.View(context.Background(), func(tx *store.Tx) error {
			boxes, err := tx.Boxes()
			for _, b := range boxes {
				if b.State == store.BoxActive {
					open++
				}
			}
			return err
		}); err != nil {
			return false
		}
		return open == count
	})
}

// sent waits until nothing but messages without a receipt waits to leave.
func sent(u *nodetest.User) {
	u.Until("all receipts and first words have left", func() bool {
		waiting := false
		err := u.Store.View(context.Background(), func(tx *store.Tx) error {
			devices, err := tx.Devices(0)
			for _, d := range devices {
				open, err := tx.OpenDeliveries(d.Hash)
				if err != nil {
					return err
				}
				for _, o := range open {
					held, _, err := tx.Holdings(o.ID)
					if err != nil {
						return err
					}
					waiting = waiting || held < 2
				}
			}
			return err
		})
		return err == nil && !waiting
	})
}

// TestNeverOnlineTogether has two people meet and talk, of whom one is always
// away.
func TestNeverOnlineTogether(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		housed(alice, 3)
		housed(bob, 3)
		link := oneTime(alice, "bob")
		announced(alice)
		alice.Stop()

		bob.Accept(link, "alice")
		first := bob.Say("alice", texts("bob", 10)...)
		bob.UntilState("held", first...)
		sent(bob)
		bob.Stop()

		alice.Start()
		began := time.Now()
		alice.UntilEstablished("bob")
		alice.UntilTexts("bob", 10)
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("what waited was there after %v", took)
		}
		answers := alice.Say("bob", texts("alice", 10)...)
		alice.UntilState("held", answers...)
		sent(alice)
		alice.Stop()

		bob.Start()
		bob.UntilTexts("alice", 20)
		bob.UntilDelivered(first...)
		sent(bob)
		bob.Stop()

		alice.Start()
		alice.UntilDelivered(answers...)
		bob.Start()
		agree(t, alice, bob, 20)
	})
}
