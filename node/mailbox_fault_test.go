package node_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
)

// honest has every community node behave.
func (w *world) honest() {
	for _, c := range w.ways {
		c.Behave(nodetest.Behaviour{})
	}
}

// mailboxes are a user's boxes as they are shown.
func mailboxes(u *nodetest.User) *apiv1.ListMailboxesResponse {
	out, err := u.Mailboxes().ListMailboxes(context.Background(), &apiv1.ListMailboxesRequest{})
	if err != nil {
		return &apiv1.ListMailboxesResponse{}
	}
	return out
}

// address is where a community node is dialled.
func address(c *nodetest.Community) string {
	return fmt.Sprintf("%s/p2p/%s", c.Info.Addrs[0], c.Info.ID)
}

// box is a user's box at a node; nil: there is none.
func box(u *nodetest.User, c *nodetest.Community) *apiv1.Mailbox {
	for _, m := range mailboxes(u).Mailboxes {
		if m.Address == address(c) {
			return m
		}
	}
	return nil
}

// homes returns the nodes where a user has an active box, and the others.
func (w *world) homes(u *nodetest.User) (with, without []*nodetest.Community) {
	for _, c := range w.ways {
		if b := box(u, c); b != nil && b.State != "leaving" && b.State != "new" {
			with = append(with, c)
		} else {
			without = append(without, c)
		}
	}
	return with, without
}

// heldAt waits until every open message of u is with at least k nodes.
func heldAt(u *nodetest.User, k int) {
	u.Until(fmt.Sprintf("all messages are with %d nodes", k), func() bool {
		all := true
		err := u.Store.View(context.Background(), func(tx *store.Tx) error {
			devices, err := tx.Devices(0)
			for _, d := range devices {
				open, err := tx.OpenDeliveries(d.Hash)
				if err != nil {
					return err
				}
				for _, o := range open {
					held, err := tx.Holdings(o.ID, 0)
					if err != nil {
						return err
					}
					all = all && (len(held) >= k || o.Message == nil)
				}
			}
			return err
		})
		return err == nil && all
	})
}

// slowly waits until ok holds, and looks every few minutes.
func slowly(t *testing.T, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Minute) {
		if !time.Now().Before(end) {
			t.Fatalf("waited %v in vain for: %s", patience, what)
		}
	}
}

// soak says how often a test repeats: few times in the suite, many with
// KITH_SOAK.
func soak(few, many int) int {
	if os.Getenv("KITH_SOAK") != "" {
		return many
	}
	return few
}

// health are the health events of a user's mailboxes.
func health(u *nodetest.User, after uint64) (events int) {
	for _, e := range u.Events(after) {
		if e.Type == "health" {
			events++
		}
	}
	return events
}

// inOrder checks that what u sees of from is what was said, each once and in order.
func inOrder(t *testing.T, u *nodetest.User, from string, said []string) {
	t.Helper()
	var got []string
	for _, m := range u.Messages(from) {
		if !m.FromMe {
			got = append(got, m.Text)
		}
	}
	if !slices.Equal(got, said) {
		t.Errorf("%s sees %d texts of %s of %d, or in another order", u.Name, len(got), from, len(said))
	}
}

// TestFS06_TwoOfThreeFail leaves 1,000 messages for somebody who is away and of
// whose three mailboxes two turn bad in the middle of it.
func TestFS06_TwoOfThreeFail(t *testing.T) {
	type fault = nodetest.Behaviour
	vanish := func(w *world, c *nodetest.Community) { c.Kill() }
	behave := func(b fault) func(*world, *nodetest.Community) {
		return func(_ *world, c *nodetest.Community) { c.Behave(b) }
	}
	for name, test := range map[string]struct {
		bad    [2]func(*world, *nodetest.Community)
		states [2]string // what they are called within a day
		sign   int       // how many of the three give good receipts
	}{
		"both drop":              {[2]func(*world, *nodetest.Community){behave(fault{Drop: 1}), behave(fault{Drop: 1})}, [2]string{"lying", "lying"}, 3},
		"one drops, one is gone": {[2]func(*world, *nodetest.Community){behave(fault{Drop: 1}), vanish}, [2]string{"lying", "unreachable"}, 2},
		"one lies, one forgets": {[2]func(*world, *nodetest.Community){
			behave(fault{FalseSign: 1, FalseProof: 1}), behave(fault{Forget: 1, ForgetAfter: 0}),
		}, [2]string{"lying", "lying"}, 2},
		"one hides, one changes":       {[2]func(*world, *nodetest.Community){behave(fault{Hide: 1}), behave(fault{Mutate: 1})}, [2]string{"lying", "lying"}, 3},
		"one is empty, one is garbage": {[2]func(*world, *nodetest.Community){behave(fault{Empty: 1}), behave(fault{Garbage: 1})}, [2]string{"lying", "unreachable"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			count := 1000
			if name != "both drop" {
				count = soak(100, 1000)
			}
			simulateMail(t, 4, func(t *testing.T, w *world) {
				w.honest()
				alice := w.user("alice")
				bob := w.userWith("bob", nodetest.Options{Ways: w.ways})
				housed(bob, 3)
				nodetest.Befriend(alice, bob)
				bob.UntilDelivered(bob.Say("alice", "I am off")...)
				alice.UntilDelivered(alice.Say("bob", "bye")...)
				nodes, _ := w.homes(bob)
				bob.Stop()
				said := []string{"bye"}
				say := func(what string, k int) (ids []string) {
					for part := range slices.Chunk(numbered(what, count/2), 100) {
						ids = append(ids, alice.Say("bob", part...)...)
						said = append(said, part...)
					}
					heldAt(alice, k)
					return ids
				}
				ids := say("before", 3)
				for i, bad := range test.bad {
					bad(w, nodes[i])
				}
				ids = append(ids, say("after", test.sign)...)
				alice.Stop()

				start := time.Now()
				bob.Start()
				since := bob.LastEvent()
				bob.UntilTexts("alice", count+2)
				t.Logf("delivered after %v", time.Since(start))
				inOrder(t, bob, "alice", said)
				defer func() {
					if t.Failed() {
						t.Log(mailboxes(bob).Mailboxes) // only a failure is worth the lines
					}
				}()
				slowly(t, 24*time.Hour, "both are named", func() bool {
					for i, state := range test.states {
						if b := box(bob, nodes[i]); b == nil || b.State != state && b.State != "leaving" || state == "lying" && len(b.Evidence) == 0 {
							return false
						}
					}
					return true
				})
				t.Logf("named after %v", time.Since(start))
				slowly(t, 24*time.Hour, "one is replaced", func() bool { return mailboxes(bob).Healthy == 2 })
				t.Logf("replaced after %v", time.Since(start))
				if n := health(bob, since); n > 2 {
					t.Errorf("%d health events: want one that says that there are too few, and one that there are enough again", n)
				}
				alice.Start()
				alice.UntilDelivered(ids...)
				agree(t, alice, bob, count+2)
			})
		})
	}
}

// TestMailCrashes ends nodes and people at any moment, in the middle of what
// they are about, while both write: nothing is lost and nothing is shown twice.
func TestMailCrashes(t *testing.T) {
	for seed := range uint64(soak(2, 100)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			simulateMail(t, 3, func(t *testing.T, w *world) {
				rng := rand.New(rand.NewPCG(seed, 0))
				alice, bob := w.visited()
				ids := make(map[*nodetest.User][]string)
				up := map[*nodetest.User]bool{alice: true, bob: true}
				total := visitedBefore
				for range 12 {
					u, other := alice, bob
					if rng.IntN(2) == 0 {
						u, other = bob, alice
					}
					switch rng.IntN(4) {
					case 0:
						c := w.ways[rng.IntN(len(w.ways))]
						c.Kill()
						time.Sleep(rand.N(10 * time.Second))
						c.Start()
					case 1:
						if up[u] {
							u.Crash()
						} else {
							u.Start()
						}
						up[u] = !up[u]
					default:
						if up[u] {
							ids[u] = append(ids[u], u.Say(other.Name, numbered("text", 10)...)...)
							total += 10
						}
					}
					time.Sleep(time.Duration(rng.Int64N(int64(20 * time.Second))))
				}
				for u, is := range up {
					if !is {
						u.Start()
					}
				}
				alice.UntilDelivered(ids[alice]...)
				bob.UntilDelivered(ids[bob]...)
				agree(t, alice, bob, total)
			})
		})
	}
}
