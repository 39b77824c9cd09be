package node_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// visited makes two contacts, alice and bob, who have heard each other, and of
// whom each has boxes at three nodes that the other knows of. The nodes are honest.
func (w *world) visited() (alice, bob *nodetest.User) {
	w.t.Helper()
	return w.apart(w.ways, w.ways)
}

// apart is visited with nodes of each one's own, so that what one learns of the
// other's is learnt by depositing there.
func (w *world) apart(forAlice, forBob []*nodetest.Community) (alice, bob *nodetest.User) {
	w.t.Helper()
	w.honest()
	alice = w.userWith("alice", nodetest.Options{Ways: forAlice})
	bob = w.userWith("bob", nodetest.Options{Ways: forBob})
	housed(alice, 3)
	housed(bob, 3)
	nodetest.Befriend(alice, bob)
	alice.UntilDelivered(alice.Say("bob", "hello")...)
	bob.UntilDelivered(bob.Say("alice", "hello")...)
	return alice, bob
}

// visitedBefore is how many messages visited leaves behind.
const visitedBefore = 2

// behave has nodes misbehave.
func behave(b nodetest.Behaviour, nodes ...*nodetest.Community) {
	for _, c := range nodes {
		c.Behave(b)
	}
}

// keeper is what a user thinks of a node.
func keeper(u *nodetest.User, c *nodetest.Community) (k store.KeeperRow) {
	if err := u.Store.View(context.Background(), func(tx *store.Tx) (err error) {
		k, err = tx.Keeper([]byte(c.Info.ID))
		return err
	}); err != nil {
		return store.KeeperRow{}
	}
	return k
}

// lyingAt is from how many strikes on a node is called lying.
const lyingAt = 9

// TestG02_Drop leaves texts with nodes of which two drop everything. The sender
// finds out by asking for proofs, and the texts arrive.
func TestG02_Drop(t *testing.T) {
	lasting(t)
	simulateMail(t, 6, func(t *testing.T, w *world) {
		alice, bob := w.apart(w.ways[3:], w.ways[:3])
		bob.Stop()
		behave(nodetest.Behaviour{Drop: 1}, w.ways[:2]...)
		ids := alice.Say("bob", numbered("text", 20)...)
		alice.UntilState("held", ids...)
		slowly(t, 6*24*time.Hour, "both are caught", func() bool {
			first, second := keeper(alice, w.ways[0]), keeper(alice, w.ways[1])
			return first.Doubts >= lyingAt && second.Doubts >= lyingAt
		})
		if k := keeper(alice, w.ways[2]); k.Strikes+k.Doubts != 0 {
			t.Errorf("the honest node has %d strikes and %d doubts", k.Strikes, k.Doubts)
		}
		alice.Stop()
		bob.Start()
		bob.UntilTexts("alice", visitedBefore+20)
		alice.Start()
		alice.UntilDelivered(ids...)
		agree(t, alice, bob, visitedBefore+20)
	})
}

// TestG03_Replay has every node hand out again what it has handed out.
func TestG03_Replay(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		behave(nodetest.Behaviour{Replay: 1, Stranger: 1}, w.ways...)
		said := visitedBefore
		for range 5 {
			bob.Stop()
			ids := alice.Say("bob", numbered("text", 10)...)
			alice.UntilState("held", ids...)
			bob.Start()
			alice.UntilDelivered(ids...)
			said += len(ids)
			bob.UntilTexts("alice", said)
		}
		time.Sleep(time.Hour)
		agree(t, alice, bob, said)
	})
}

// TestG04_DelayReorder has every node hand out late and in a wrong order.
func TestG04_DelayReorder(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		behave(nodetest.Behaviour{Reorder: 1, Delay: 0.5, DelayFor: 5 * time.Minute}, w.ways...)
		bob.Stop()
		said := numbered("text", 200)
		ids := alice.Say("bob", said...)
		alice.UntilState("held", ids...)
		alice.Stop()
		bob.Start()
		bob.UntilTexts("alice", visitedBefore+200)
		inOrder(t, bob, "alice", append([]string{"hello"}, said...))
		alice.Start()
		alice.UntilDelivered(ids...)
		agree(t, alice, bob, visitedBefore+200)
	})
}

// TestG05_Stale has two of three nodes tell the sender that they hold what they
// do not show to the recipient.
func TestG05_Stale(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		behave(nodetest.Behaviour{Hide: 1}, w.ways[0])
		behave(nodetest.Behaviour{Empty: 1}, w.ways[1])
		bob.Stop()
		ids := alice.Say("bob", numbered("text", 20)...)
		heldAt(alice, 3)
		alice.Stop()
		bob.Start()
		start := time.Now()
		bob.UntilTexts("alice", visitedBefore+20)
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("it took %v", took)
		}
		slowly(t, 24*time.Hour, "both are called lying", func() bool {
			a, b := keeper(bob, w.ways[0]), keeper(bob, w.ways[1])
			return a.Strikes >= lyingAt && b.Strikes >= lyingAt
		})
		if k := keeper(bob, w.ways[2]); k.Strikes != 0 {
			t.Errorf("the honest node has %d strikes", k.Strikes)
		}
		alice.Start()
		alice.UntilDelivered(ids...)
	})
}

// TestG05_OneTag has a node drop what comes under one tag, or hide a single
// envelope, and serve all else, tests included. The sender tells the recipient
// what the node signed for, and the recipient names it: that one, and no other.
func TestG05_OneTag(t *testing.T) {
	for name, b := range map[string]nodetest.Behaviour{"a tag": {DropTags: 1}, "an envelope": {Hide: 1}} {
		t.Run(name, func(t *testing.T) {
			simulateMail(t, 3, func(t *testing.T, w *world) {
				alice, bob := w.visited()
				bob.Stop()
				behave(b, w.ways[0])
				ids := alice.Say("bob", "can you see this?")
				heldAt(alice, 3)
				bob.Start()
				alice.UntilDelivered(ids...)
				if b.Hide > 0 {
					behave(nodetest.Behaviour{}, w.ways[0])
				}
				time.Sleep(90 * time.Minute)
				alice.UntilDelivered(alice.Say("bob", "did you see it?")...)
				slowly(t, time.Hour, "the node is doubted", func() bool { return keeper(bob, w.ways[0]).Doubts > 0 })
				for i, c := range w.ways {
					if k := keeper(bob, c); k.Strikes != 0 || i > 0 && k.Doubts != 0 || k.Lost != 0 {
						t.Errorf("node %d has %d strikes and %d doubts", i, k.Strikes, k.Doubts)
					}
				}
				list, err := bob.Node.Mailboxes().ListMailboxes(t.Context(), &apiv1.ListMailboxesRequest{})
				if err != nil {
					t.Fatal(err)
				}
				named := 0
				for _, m := range list.Mailboxes {
					if m.State == "degraded" && len(m.Evidence) == 1 {
						named++
					}
				}
				if named != 1 || list.Healthy != 3 {
					t.Errorf("%d mailboxes are named, %d are healthy: %v", named, list.Healthy, list.Mailboxes)
				}
			})
		})
	}
}

// TestG05_FetchedUnseen has bob fetch his mail and go before his receipts have
// left: alice asks for proofs, no node has anything, and nobody is blamed.
func TestG05_FetchedUnseen(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		bob.Stop()
		ids := alice.Say("bob", numbered("text", 5)...)
		alice.UntilState("held", ids...)
		alice.Stop()
		bob.Start()
		bob.UntilTexts("alice", visitedBefore+5)
		time.Sleep(3 * time.Second) // he fetches from all three; receipts wait for longer
		bob.Stop()
		time.Sleep(2 * time.Hour)
		alice.Start()
		alice.Until("the texts were left again", func() bool {
			left := 0
			for _, a := range trace(t, alice, ids[0]).Devices[0].Attempts {
				if a.Road == "mailbox" {
					left++
				}
			}
			return left > 1
		})
		for i, c := range w.ways {
			if k := keeper(alice, c); k.Strikes != 0 || k.Doubts != 0 {
				t.Errorf("node %d has %d strikes and %d doubts", i, k.Strikes, k.Doubts)
			}
		}
		bob.Start()
		alice.UntilDelivered(ids...)
		agree(t, alice, bob, visitedBefore+5)
	})
}

// TestG05_Interrupted has bob empty one of three nodes and go: the others prove that
// they kept what that one has not, text after text. It counts once.
func TestG05_Interrupted(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		bob.Stop()
		for _, text := range numbered("text", 5) {
			alice.UntilState("held", alice.Say("bob", text)...)
			time.Sleep(2 * time.Minute)
		}
		alice.Stop()
		for _, c := range w.ways[1:] {
			w.Blackhole(c.IP)
		}
		bob.Start()
		bob.UntilTexts("alice", visitedBefore+5)
		time.Sleep(3 * time.Second)
		bob.Stop()
		w.Heal()
		alice.Start()
		time.Sleep(2 * time.Hour)
		for i, c := range w.ways {
			want := 0
			if i == 0 {
				want = 3 // one loss
			}
			if k := keeper(alice, c); k.Strikes != 0 || int(k.Doubts) != want {
				t.Errorf("node %d has %d strikes and %d doubts, want %d", i, k.Strikes, k.Doubts, want)
			}
		}
	})
}

// TestG05_NobodyDoubted has nodes do everything that loses nothing for two days
// in which people come and go: nobody is blamed.
func TestG05_NobodyDoubted(t *testing.T) {
	lasting(t)
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		mild := nodetest.Mild(false)
		mild.Garbage = 0 // a broken program is one
		behave(mild, w.ways...)
		for range 8 {
			bob.Stop()
			ids := alice.Say("bob", numbered("text", 5)...)
			alice.UntilState("held", ids...)
			time.Sleep(2 * time.Hour)
			bob.Start()
			alice.UntilDelivered(ids...)
			time.Sleep(4 * time.Hour)
		}
		for i, c := range w.ways {
			if k := keeper(bob, c); k.Doubts != 0 {
				t.Errorf("node %d has %d doubts", i, k.Doubts)
			}
		}
	})
}

// TestG09_FalseReceipts has one of three nodes give false receipts and proofs:
// it is caught within ten audits, and what it says does not count.
func TestG09_FalseReceipts(t *testing.T) {
	for name, b := range map[string]nodetest.Behaviour{
		"signature":         {FalseSign: 1},
		"another's receipt": {OtherSign: 1},
		"proof":             {FalseProof: 1},
		"nothing there":     {Drop: 1},
	} {
		t.Run(name, func(t *testing.T) {
			if b.Drop > 0 {
				lasting(t) // it is doubted once a day
			}
			simulateMail(t, 6, func(t *testing.T, w *world) {
				alice, bob := w.apart(w.ways[3:], w.ways[:3])
				bob.Stop()
				behave(b, w.ways[0])
				ids := alice.Say("bob", numbered("is it there?", 5)...)
				alice.UntilState("held", ids...)
				audits := 10
				slowly(t, time.Duration(audits-2)*24*time.Hour, "the node is caught", func() bool {
					k := keeper(alice, w.ways[0])
					return k.Strikes+k.Doubts >= lyingAt
				})
				for _, c := range w.ways[1:3] {
					if k := keeper(alice, c); k.Strikes+k.Doubts != 0 {
						t.Errorf("an honest node has %d strikes", k.Strikes)
					}
				}
				more := alice.Say("bob", "and this?")
				heldAt(alice, 2)
				time.Sleep(time.Minute)
				for _, id := range append(ids, more...) { // left before it was caught, and after
					out, err := alice.Trace(context.Background(), &apiv1.TraceRequest{Id: id})
					if err != nil || out.Message.Holding.GetHeld() != 2 {
						t.Errorf("%v are said to hold it, of two that do: %v", out.GetMessage().GetHolding(), err)
					}
				}
				bob.Start()
				alice.UntilDelivered(append(ids, more...)...)
				agree(t, alice, bob, visitedBefore+6)
			})
		})
	}
}

// TestG10_PoisonedPages has one of three nodes hand out without end: small
// envelopes, large ones, and what is no page. It costs a bounded amount of memory,
// nobody waits for it, and it is dropped.
func TestG10_PoisonedPages(t *testing.T) {
	for name, b := range map[string]nodetest.Behaviour{
		"small":   {Flood: 1, FloodSize: 1 << 10},
		"large":   {Flood: 1, FloodSize: 128 << 10},
		"nothing": {Empty: 1},
		"unasked": {Unasked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "small" && soak(0, 1) == 0 {
				t.Skip("65,000 envelopes take a while: make soak has it")
			}
			simulateMail(t, 4, func(t *testing.T, w *world) {
				w.honest()
				alice := w.user("alice")
				bob := w.userWith("bob", nodetest.Options{Ways: w.ways})
				housed(bob, 3)
				nodetest.Befriend(alice, bob)
				nodes, _ := w.homes(bob)
				alice.UntilDelivered(alice.Say("bob", "hello")...)
				bob.Stop()
				behave(b, nodes[0])
				ids := alice.Say("bob", numbered("text", 20)...)
				alice.UntilState("held", ids...)
				alice.Stop()

				before := heap()
				start := time.Now()
				bob.Start()
				bob.UntilTexts("alice", 21)
				if took := time.Since(start); took > 30*time.Second {
					t.Errorf("what is elsewhere took %v", took)
				}
				slowly(t, 24*time.Hour, "the node is dropped", func() bool {
					if used := heap() - before; used > 64<<20 {
						t.Fatalf("%d MiB are in use", used>>20)
					}
					b := box(bob, nodes[0])
					return b == nil || b.State == "leaving" && len(b.Evidence) > 0
				})
				bob.Until("another takes its place", func() bool { return mailboxes(bob).Healthy == 3 })
			})
		})
	}
}

// TestHeldForAnHour: the receipt of a node that keeps mail for no hour is none.
func TestHeldForAnHour(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		bob.Stop()
		behave(nodetest.Behaviour{Hours: new(uint16)}, w.ways[:2]...)
		ids := alice.Say("bob", "for how long?")
		time.Sleep(time.Hour)
		if s := alice.State(ids[0]); s != "queued" {
			t.Errorf("with one node that keeps it, it is %s", s)
		}
		behave(nodetest.Behaviour{}, w.ways...)
		slowly(t, 2*time.Hour, "two keep it", func() bool { return alice.State(ids[0]) == "held" })
	})
}

// TestOnlyCopyAudited: where one node alone has taken a message, it is asked whether it
// still has it, as it is where enough have, and gets it again when it has not.
func TestOnlyCopyAudited(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		bob.Stop()
		behave(nodetest.Behaviour{Forget: 1, ForgetAfter: 10 * time.Minute}, w.ways[0])
		behave(nodetest.Behaviour{Full: 1}, w.ways[1:]...)
		alice.Say("bob", "the only copy")
		time.Sleep(30 * time.Minute)
		behave(nodetest.Behaviour{}, w.ways[0])
		time.Sleep(2 * time.Hour)
		alice.Stop()
		bob.Start()
		bob.UntilTexts("alice", visitedBefore+1)
	})
}

// TestReceiptsEnd: nodes that keep mail for two hours get it again when these are
// over, and nobody takes one that has kept its word for one that lost mail.
func TestReceiptsEnd(t *testing.T) {
	lasting(t)
	for name, short := range map[string]int{"one of three": 1, "all": 3} {
		t.Run(name, func(t *testing.T) {
			simulateMail(t, 3, func(t *testing.T, w *world) {
				alice, bob := w.visited()
				sent(bob)
				bob.Stop()
				for _, c := range w.ways[:short] {
					if _, err := c.Mail.SetNode(context.Background(), &apiv1.SetNodeRequest{Limits: &apiv1.NodeLimits{RetentionS: 7200}}); err != nil {
						t.Fatal(err)
					}
				}
				ids := alice.Say("bob", texts("alice", 4)...)
				alice.UntilState("held", ids...)
				time.Sleep(7*time.Hour + 30*time.Minute)
				for i, c := range w.ways {
					if k := keeper(alice, c); k.Strikes != 0 || k.Doubts != 0 {
						t.Errorf("node %d has %d strikes and %d doubts", i, k.Strikes, k.Doubts)
					}
				}
				alice.Stop()
				for _, c := range w.ways[short:] {
					w.Blackhole(c.IP)
				}
				bob.Start()
				bob.UntilTexts("alice", visitedBefore+4)
			})
		})
	}
}

// TestFullNodesHandOut: a node that has no room for the tags of an owner, or cannot
// write them, hands out the mail it has all the same.
func TestFullNodesHandOut(t *testing.T) {
	for name, test := range map[string]struct {
		limits    *apiv1.NodeLimits
		behaviour nodetest.Behaviour
	}{
		"a full quota": {limits: &apiv1.NodeLimits{Quota: 1}},
		"fewer tags":   {limits: &apiv1.NodeLimits{BoxTags: 1}},
		"a full disk":  {behaviour: nodetest.Behaviour{TagsBusy: 1, BusyFor: time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			simulateMail(t, 3, func(t *testing.T, w *world) {
				alice, bob := w.visited()
				sent(bob)
				bob.Stop()
				ids := alice.Say("bob", texts("alice", 3)...)
				alice.UntilState("held", ids...)
				alice.Stop()
				for _, c := range w.ways {
					if _, err := c.Mail.SetNode(context.Background(), &apiv1.SetNodeRequest{Limits: test.limits}); err != nil {
						t.Fatal(err)
					}
					c.Behave(test.behaviour)
				}
				bob.Start()
				bob.UntilTexts("alice", visitedBefore+3)
			})
		})
	}
}

// TestSlowLink: what waits is collected over a link of 3 kB a second, on which a
// page takes twenty seconds and more.
func TestSlowLink(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		sent(bob)
		bob.Stop()
		ids := alice.Say("bob", texts("alice", 70)...)
		alice.UntilState("held", ids...)
		alice.Stop()
		behave(nodetest.Behaviour{Pace: 3000}, w.ways...)
		bob.Start()
		bob.UntilTexts("alice", visitedBefore+70)
	})
}

// TestLiarsComeLast: of five mailboxes a message is left at those whose receipts
// count, wherever they stand in the set. When the set changes, receipts of those
// that are not in it count no longer, and others get what they held.
func TestLiarsComeLast(t *testing.T) {
	ctx := context.Background()
	simulateMail(t, 5, func(t *testing.T, w *world) {
		w.honest()
		alice, bob := w.user("alice"), w.userWith("bob", nodetest.Options{Ways: w.ways})
		for _, c := range w.ways {
			if _, err := bob.Mailboxes().AddMailbox(ctx, &apiv1.AddMailboxRequest{Address: address(c)}); err != nil {
				t.Fatal(err)
			}
		}
		housed(bob, 5)
		nodetest.Befriend(alice, bob)
		alice.UntilDelivered(alice.Say("bob", "hello")...)
		bob.UntilDelivered(bob.Say("alice", "hello")...)
		sent(bob)
		bob.Stop()
		var set []*nodetest.Community // in its order
		boxes := func(tx *store.Tx) ([]byte, *wire.Set, error) {
			devices, err := tx.Devices(0)
			if err != nil {
				return nil, nil, err
			}
			b, err := tx.DeviceBoxes(devices[0].Hash)
			if err != nil {
				return nil, nil, err
			}
			s, err := wire.ParseSet(b)
			return devices[0].Hash, s, err
		}
		if err := alice.Store.Update(ctx, func(tx *store.Tx) error {
			_, s, err := boxes(tx)
			if err != nil {
				return err
			}
			for _, a := range s.Nodes {
				for _, c := range w.ways {
					if bytes.HasSuffix(a, []byte(c.Info.ID)) {
						set = append(set, c)
					}
				}
			}
			for _, c := range set[:3] {
				if err := tx.SaveKeeper(store.KeeperRow{Node: []byte(c.Info.ID), Strikes: 1 << 40}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil || len(set) != 5 {
			t.Fatal(len(set), err)
		}
		ids := alice.Say("bob", "who has it?")
		alice.UntilState("held", ids...)
		holding := func() (held []bool) {
			if err := alice.Store.View(ctx, func(tx *store.Tx) error {
				device, _, err := boxes(tx)
				if err != nil {
					return err
				}
				open, err := tx.OpenDeliveries(device)
				if err != nil {
					return err
				}
				nodes, err := tx.Holdings(open[len(open)-1].ID, 0)
				held = make([]bool, len(set))
				for i, c := range set {
					k := keeper(alice, c)
					held[i] = k.Strikes+k.Doubts < lyingAt &&
						slices.ContainsFunc(nodes, func(h store.HoldingRow) bool { return string(h.Node) == string(c.Info.ID) })
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return held
		}
		if got := holding(); !slices.Equal(got, []bool{false, false, false, true, true}) {
			t.Errorf("receipts count of %v", got)
		}

		// The set is now the first three, who are forgiven.
		if err := alice.Store.Update(ctx, func(tx *store.Tx) error {
			for _, c := range set[:3] {
				if err := tx.SaveKeeper(store.KeeperRow{Node: []byte(c.Info.ID)}); err != nil {
					return err
				}
			}
			device, s, err := boxes(tx)
			if err != nil {
				return err
			}
			s.Nodes = s.Nodes[:3]
			b, err := s.Marshal()
			if err != nil {
				return err
			}
			var left [][]byte
			for _, c := range set[:3] {
				left = append(left, []byte(c.Info.ID))
			}
			return errors.Join(tx.SaveDeviceBoxes(device, b), tx.KeepHoldings(device, left, 2, 0))
		}); err != nil {
			t.Fatal(err)
		}
		alice.Restart() // nothing woke the depositor
		time.Sleep(time.Minute)
		if got := holding(); !slices.Equal(got, []bool{true, true, true, false, false}) {
			t.Errorf("after the change receipts count of %v", got)
		}
	})
}

// TestAwayKeptUntilReplaced: a mailbox that is away for days is not given up as
// long as nothing takes its place. Two that do not answer hold up no third.
func TestAwayKeptUntilReplaced(t *testing.T) {
	lasting(t)
	simulateMail(t, 6, func(t *testing.T, w *world) {
		w.honest()
		began := time.Now()
		for _, c := range w.ways[3:] {
			w.Blackhole(c.IP)
		}
		bob := w.userWith("bob", nodetest.Options{Ways: w.ways})
		housed(bob, 3)
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("it took %v to find three mailboxes", took)
		}
		gone := w.ways[0]
		gone.Kill()
		time.Sleep(72 * time.Hour)
		if b := box(bob, gone); b == nil || b.State != "unreachable" {
			t.Errorf("a mailbox that is away and has no replacement is %v", b)
		}
		w.Heal()
		slowly(t, 2*time.Hour, "it is replaced", func() bool {
			b := box(bob, gone)
			return b != nil && b.State == "leaving" && mailboxes(bob).Healthy == 3
		})
	})
}

// TestTurnedAway: a node that takes what we leave for others and knows our own box
// no more is replaced as one that is away.
func TestTurnedAway(t *testing.T) {
	lasting(t)
	simulateMail(t, 4, func(t *testing.T, w *world) {
		alice, bob := w.apart(w.ways[:3], w.ways)
		sent(alice)
		alice.Stop()
		with, _ := w.homes(bob)
		odd := with[0] // of four, the first three of which are alice's
		odd.Behave(nodetest.Behaviour{NoBox: 1})
		bob.Restart()
		for range 9 {
			bob.Say("alice", "are you there?")
			time.Sleep(3 * time.Hour)
		}
		if b := box(bob, odd); b != nil && b.State != "leaving" || mailboxes(bob).Healthy != 3 {
			t.Errorf("after a day the box is %v", b)
		}
	})
}

// heap is what of the heap is reachable.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestG11_Sybils has four of five nodes that a user may choose be bad, in every
// way, and the one that the user chose be honest.
func TestG11_Sybils(t *testing.T) {
	simulateMail(t, 10, func(t *testing.T, w *world) {
		w.honest()
		alice, bob := w.user("alice"), w.userWith("bob", nodetest.Options{Ways: w.ways[:8]})
		housed(bob, 3)
		if _, err := bob.Mailboxes().AddMailbox(context.Background(), &apiv1.AddMailboxRequest{Address: address(w.ways[9])}); err != nil {
			t.Fatal(err)
		}
		housed(bob, 4)
		nodetest.Befriend(alice, bob)
		alice.UntilDelivered(alice.Say("bob", "hello")...)
		bob.UntilDelivered(bob.Say("alice", "hello")...)
		for i, b := range []nodetest.Behaviour{{Drop: 1}, {Hide: 1}, {FalseSign: 1}, {Mutate: 1}, {Garbage: 1}, {Empty: 1}, {Cut: 1}, {Full: 1}} {
			behave(b, w.ways[i])
		}
		bob.Stop()
		ids := alice.Say("bob", numbered("text", 20)...)
		alice.Until("the honest node has them", func() bool {
			s, err := w.ways[9].Mail.Status(context.Background())
			return err == nil && s.Items >= 20
		})
		alice.Stop()
		bob.Start()
		bob.UntilTexts("alice", 22)
		alice.Start()
		alice.UntilDelivered(ids...)
		agree(t, alice, bob, 22)
	})
}

// TestG14_Mutated has nodes change envelopes to see what that does: nothing is
// shown, receipted or said, and the true copy is shown when it comes.
func TestG14_Mutated(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		behave(nodetest.Behaviour{Mutate: 1}, w.ways...)
		bob.Stop()
		ids := alice.Say("bob", numbered("text", 5)...)
		heldAt(alice, 3)
		alice.Stop()
		last := bob.LastEvent
		bob.Start()
		before := last()
		time.Sleep(5 * time.Minute)
		for _, e := range bob.Events(before) {
			if e.Type == "message" || e.Type == "health" {
				t.Errorf("the recipient is told of a %s: %q", e.Type, e.Text)
			}
		}
		if n := len(bob.Messages("alice")); n != visitedBefore {
			t.Errorf("the recipient sees %d messages", n)
		}
		// They are done with, as what opens is: no node learns the difference.
		for _, c := range w.ways {
			s, err := c.Mail.Status(context.Background())
			if err != nil || s.Items != 0 {
				t.Errorf("a node still has %d: %v", s.Items, err)
			}
		}
		bob.Stop()
		alice.Start()
		if state := alice.State(ids[0]); state != "held" {
			t.Errorf("the sender believes that it is %s", state)
		}
		behave(nodetest.Behaviour{}, w.ways[2])
		time.Sleep(2 * time.Hour) // the nodes are asked, and get it again
		alice.Stop()
		bob.Start()
		bob.UntilTexts("alice", visitedBefore+5)
		alice.Start()
		alice.UntilDelivered(ids...)
		agree(t, alice, bob, visitedBefore+5)
	})
}

// TestMailboxNone has somebody who wants no mailboxes: what is for them waits
// with who sent it, and what they send with them.
func TestMailboxNone(t *testing.T) {
	lasting(t)
	simulateMail(t, 3, func(t *testing.T, w *world) {
		w.honest()
		alice := w.user("alice")
		bob := w.userWith("bob", nodetest.Options{Mailboxes: node.MailboxNone})
		housed(alice, 3)
		nodetest.Befriend(alice, bob)
		alice.UntilDelivered(alice.Say("bob", "hello")...)
		bob.UntilDelivered(bob.Say("alice", "hello")...)
		_, err := bob.Mailboxes().AddMailbox(context.Background(), &apiv1.AddMailboxRequest{Address: address(w.ways[0])})
		wantCode(t, err, node.CodeRefused)

		bob.Stop()
		toBob := alice.Say("bob", "for you alone")
		time.Sleep(2 * time.Hour)
		if state := alice.State(toBob[0]); state != "queued" {
			t.Errorf("what is for bob is %s", state)
		}
		alice.Stop()
		bob.Start()
		toAlice := bob.Say("alice", "from me alone")
		time.Sleep(2 * time.Hour)
		if state := bob.State(toAlice[0]); state != "queued" {
			t.Errorf("what bob sent is %s", state)
		}
		if m := mailboxes(bob); len(m.Mailboxes) != 0 || m.Mode != "none" {
			t.Errorf("bob has %d mailboxes in mode %s", len(m.Mailboxes), m.Mode)
		}
		alice.Start()
		alice.UntilDelivered(toBob...)
		bob.UntilDelivered(toAlice...)
		agree(t, alice, bob, 4)
	})
}

// TestMoved gives up all boxes while a contact cannot hear of it: what they
// leave in the old ones arrives, and what they leave later is in the new ones.
func TestMoved(t *testing.T) {
	simulateMail(t, 6, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		old, fresh := w.homes(bob)
		alice.Stop()
		w.Blackhole(bob.IP)
		for _, m := range mailboxes(bob).Mailboxes {
			if _, err := bob.Mailboxes().RemoveMailbox(context.Background(), &apiv1.RemoveMailboxRequest{Id: m.Id}); err != nil {
				t.Fatal(err)
			}
		}
		bob.Crash()
		alice.Start()
		first := alice.Say("bob", numbered("to the old place", 20)...)
		alice.UntilState("held", first...)
		alice.Stop()
		w.Heal()
		bob.Start()
		bob.UntilTexts("alice", visitedBefore+20)
		housed(bob, 3)
		if now, _ := w.homes(bob); slices.ContainsFunc(now, func(c *nodetest.Community) bool { return slices.Contains(old, c) }) {
			t.Error("a box that was given up is in use")
		}
		sent(bob)
		bob.Stop()
		alice.Start()
		alice.UntilDelivered(first...)
		second := alice.Say("bob", numbered("to the new place", 20)...)
		alice.UntilState("held", second...)
		for _, c := range fresh {
			if s, err := c.Mail.Status(context.Background()); err != nil || s.Items < 20 {
				t.Errorf("a new place has %d: %v", s.Items, err)
			}
		}
		alice.Stop()
		bob.Start()
		bob.UntilTexts("alice", visitedBefore+40)
		alice.Start()
		alice.UntilDelivered(second...)
		agree(t, alice, bob, visitedBefore+40)
	})
}
