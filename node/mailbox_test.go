package node_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	wire "github.com/kith-im/kith/protocol/mailbox"
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
					held, err := tx.Holdings(o.ID, 0)
					if err != nil {
						return err
					}
					waiting = waiting || len(held) < 2
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

// TestTraceSaysWhyItWaits: a message that no mailbox, or too few, could be given says
// so where it is looked up, be it their fault or that our own bytes are used up.
func TestTraceSaysWhyItWaits(t *testing.T) {
	for _, test := range []struct {
		name   string
		before func(*world, *nodetest.User)
		want   []string // by any road
	}{
		{
			name: "all are full", want: []string{"mailbox: the mailbox is full"},
			before: func(w *world, _ *nodetest.User) {
				for _, c := range w.ways {
					c.Behave(nodetest.Behaviour{Full: 1})
				}
			},
		},
		{
			name: "all but one are full", want: []string{"mailbox: held by 1 of 3: the mailbox is full"},
			before: func(w *world, _ *nodetest.User) {
				for _, c := range w.ways[1:] {
					c.Behave(nodetest.Behaviour{Full: 1})
				}
			},
		},
		{
			name: "the day's bytes are used up", want: []string{"direct: not looked for: the bytes of this day are used up"},
			before: func(_ *world, alice *nodetest.User) {
				meter := alice.Contacts.Meter()
				_, day := meter.Usage()
				var all transport.Usage
				all.Sent[0] = meter.Budget().Bytes
				meter.Restore(all, day)
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			simulateMail(t, 3, func(t *testing.T, w *world) {
				alice, bob := w.userWith("alice", nodetest.Options{Budget: transport.Budget{Bytes: 1 << 30}}), w.user("bob")
				nodetest.Befriend(alice, bob)
				housed(alice, 3)
				housed(bob, 3)
				alice.UntilDelivered(alice.Say("bob", "hello")...)
				sent(bob)
				bob.Stop()
				test.before(w, alice)
				id := alice.Say("bob", "when you are back")[0]
				told := ""
				alice.Until("the trace says why", func() bool {
					trace, err := alice.Trace(ctx, &apiv1.TraceRequest{Id: id})
					if err != nil {
						t.Fatal(err)
					}
					told = ""
					for _, a := range trace.Devices[0].Attempts {
						told += a.Road + ": " + a.Result + "\n"
					}
					return !slices.ContainsFunc(test.want, func(want string) bool { return !strings.Contains(told, want) })
				})
				if s := alice.State(id); s != "queued" && s != "sent" {
					t.Errorf("the message is %s, and the trace says\n%s", s, told)
				}
			})
		})
	}
}

// TestHeldQuickly measures how long a sender who closes the laptop has to wait.
func TestHeldQuickly(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		housed(alice, 3)
		housed(bob, 3)
		sent(bob)
		bob.Stop()
		// The daemon notices that the stream has ended; nothing else is known yet.
		began := time.Now()
		alice.UntilState("held", alice.Say("bob", "while you were out")...)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the first text was held after %v", took)
		}
		began = time.Now()
		id := alice.Say("bob", "and one more")[0]
		alice.UntilState("held", id)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the next text was held after %v", took)
		}
		trace, err := alice.Trace(context.Background(), &apiv1.TraceRequest{Id: id})
		if err != nil {
			t.Fatal(err)
		}
		h := trace.Devices[0].Holding
		days := time.Until(time.UnixMilli(h.GetUntilMs())) / (24 * time.Hour)
		if h.GetHeld() < 2 || h.GetOf() != 3 || days < 29 || days > 30 {
			t.Errorf("the trace says it is held by %d of %d for %d days", h.GetHeld(), h.GetOf(), days)
		}
		all := alice.Messages("bob")
		if got := all[len(all)-1].Holding; got.GetHeld() != h.GetHeld() || got.GetOf() != 3 {
			t.Errorf("the conversation says it is held by %d of %d", got.GetHeld(), got.GetOf())
		}
		bob.Start()
		alice.UntilDelivered(id)
		bob.Until("nothing is said to wait", func() bool {
			waiting := int64(0)
			for _, m := range mailboxes(bob).Mailboxes {
				waiting += m.Items + m.Bytes
			}
			return waiting == 0
		})
	})
}

// TestDrain retires a community node: owners and depositors move, and nothing
// that it keeps is lost.
func TestDrain(t *testing.T) {
	simulateMail(t, 4, func(t *testing.T, w *world) {
		bob := w.userWith("bob", nodetest.Options{Ways: w.ways})
		housed(bob, 3)
		alice := w.user("alice")
		nodetest.Befriend(alice, bob)
		sent(alice)
		sent(bob)
		used := holders(t, bob)
		bob.Stop()
		ids := alice.Say("bob", texts("alice", 5)...)
		alice.UntilState("held", ids...)
		for _, c := range w.ways {
			if used[c.Info.ID] {
				if err := c.Mail.SetDraining(context.Background(), true); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		bob.Start()
		bob.UntilTexts("alice", 5)
		alice.UntilDelivered(ids...)
		bob.Until("another node has taken its place", func() bool {
			now := holders(t, bob)
			for id := range now {
				if !used[id] {
					return len(now) == 3
				}
			}
			return false
		})
		// One that is in use is retired while its owner is connected.
		for _, c := range w.ways {
			if holders(t, bob)[c.Info.ID] {
				if err := c.Mail.SetDraining(context.Background(), true); err != nil {
					t.Fatal(err)
				}
				retired := c.Info.ID
				bob.Until("the owner gives it up", func() bool { return !holders(t, bob)[retired] })
				break
			}
		}
		sent(bob)
		bob.Stop()
		more := alice.Say("bob", "after the move")
		alice.UntilState("held", more...)
		bob.Start()
		alice.UntilDelivered(more...)
	})
}

// holders are the nodes at which a user has boxes that contacts are told of.
func holders(t *testing.T, u *nodetest.User) map[peer.ID]bool {
	t.Helper()
	out := make(map[peer.ID]bool)
	if err := u.Store.View(context.Background(), func(tx *store.Tx) error {
		boxes, err := tx.Boxes()
		for _, b := range boxes {
			if b.State == store.BoxActive {
				out[peer.ID(b.Node)] = true
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestBoxesOfANewcomer: bob answers an invite before he has mailboxes, and leaves
// when his first words are held. They say where an answer goes, so that it needs no
// record of his.
func TestBoxesOfANewcomer(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		w.honest()
		alice := w.user("alice")
		housed(alice, 3)
		link := oneTime(alice, "bob")
		announced(alice)
		alice.Stop()
		bob := w.userWith("bob", nodetest.Options{Mailboxes: node.MailboxNone})
		bob.Accept(link, "alice")
		bob.Until("her keys are found", func() bool { return bob.Contact("alice").Devices > 0 })
		bob.Stop()
		bob = w.userWith("bob", nodetest.Options{Home: bob.Home})
		housed(bob, 3)
		bob.UntilState("held", bob.Say("alice", "answer me")...)
		bob.Stop()
		alice.Start()
		alice.UntilEstablished("bob")
		alice.UntilTexts("bob", 1)
		if err := alice.Store.View(context.Background(), func(tx *store.Tx) error {
			devices, err := tx.Devices(0)
			if err != nil {
				return err
			}
			told, err := tx.DeviceBoxes(devices[0].Hash)
			if err != nil {
				return err
			}
			set, err := wire.ParseSet(told)
			if err == nil && (set.Version == 0 || len(set.Nodes) != 3) { // 0: a record said so
				t.Errorf("version %d of his mailboxes, %d of them, is known", set.Version, len(set.Nodes))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestMailClocks has one of the two return with a clock that is wrong by ten
// years: nothing expires early, and nobody has to be found anew.
func TestMailClocks(t *testing.T) {
	const years = 10 * 365 * 24 * time.Hour
	for name, skew := range map[string]time.Duration{"ahead": years, "behind": -years} {
		t.Run(name, func(t *testing.T) {
			simulateMail(t, 3, func(t *testing.T, w *world) {
				alice, bob := w.pair()
				housed(alice, 3)
				housed(bob, 3)
				sent(alice)
				sent(bob)
				alice.Stop()
				bob.Stop()
				wrong := func() time.Time { return time.Now().Add(skew) }
				alice = w.userWith("alice", nodetest.Options{Home: alice.Home, Now: wrong})
				ids := alice.Say("bob", texts("alice", 3)...)
				alice.UntilState("held", ids...)
				alice.Stop()
				time.Sleep(time.Hour)
				bob.Start()
				bob.UntilTexts("alice", 3)
				answers := bob.Say("alice", texts("bob", 3)...)
				bob.UntilState("held", answers...)
				sent(bob)
				bob.Stop()
				alice.Start()
				alice.UntilTexts("bob", 6)
				alice.UntilDelivered(ids...)
				sent(alice)
				alice.Stop()
				bob.Start()
				bob.UntilDelivered(answers...)
			})
		})
	}
}

// TestMailboxComesBack: mailboxes that were switched off and are switched on
// again, a node that retires and does not after all, and one that has moved are
// used again; one that the user removed is not.
func TestMailboxComesBack(t *testing.T) {
	ctx := context.Background()
	listed := func(u *nodetest.User) map[string]string {
		out, err := u.Mailboxes().ListMailboxes(ctx, &apiv1.ListMailboxesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		states := make(map[string]string)
		for _, m := range out.Mailboxes {
			states[m.Id] = m.State
		}
		return states
	}
	simulateMail(t, 4, func(t *testing.T, w *world) {
		alice := w.userWith("alice", nodetest.Options{Ways: w.ways[:3]})
		housed(alice, 3)
		pinned, err := alice.Mailboxes().AddMailbox(ctx, &apiv1.AddMailboxRequest{Address: address(w.ways[0])})
		if err != nil {
			t.Fatal(err)
		}
		alice.Stop()
		off := w.userWith("alice", nodetest.Options{Ways: w.ways[:3], Home: alice.Home, Mailboxes: node.MailboxNone})
		off.Until("the boxes are given up", func() bool { return len(holders(t, off)) == 0 })
		off.Stop()
		alice.Start()
		housed(alice, 3)

		// Its node retires, and does not after all.
		if err := w.ways[0].Mail.SetDraining(ctx, true); err != nil {
			t.Fatal(err)
		}
		alice.Until("the retiring node is given up", func() bool { return listed(alice)[pinned.Mailbox.Id] == "leaving" })
		if err := w.ways[0].Mail.SetDraining(ctx, false); err != nil {
			t.Fatal(err)
		}
		alice.Until("it is used again", func() bool { return holders(t, alice)[w.ways[0].Info.ID] })

		if _, err := alice.Mailboxes().RemoveMailbox(ctx, &apiv1.RemoveMailboxRequest{Id: pinned.Mailbox.Id}); err != nil {
			t.Fatal(err)
		}
		alice.Restart()
		time.Sleep(time.Hour)
		if s := listed(alice)[pinned.Mailbox.Id]; s != "leaving" {
			t.Errorf("a box that was removed is %s", s)
		}

		// A node that is away is said to be so at once.
		gone := w.ways[1]
		gone.Kill()
		alice.Until("it is called unreachable", func() bool {
			for _, s := range listed(alice) {
				if s == "unreachable" {
					return true
				}
			}
			return false
		})
	})
}

// TestTalkEndsDeposits: once a conversation is there, nothing more of what waits is
// left at mailboxes: over one slow line the copies would end it.
func TestTalkEndsDeposits(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.visited()
		before := deposits(t, w)
		bob.Stop()
		w.SetLatency(200 * time.Millisecond)
		const count = 256
		var all []string
		for i := range count {
			all = append(all, fmt.Sprintf("text %d %s", i, strings.Repeat("x", 4000)))
		}
		var ids []string
		for some := range slices.Chunk(all, 16) {
			ids = append(ids, alice.Say("bob", some...)...)
		}
		alice.Until("something is left", func() bool { return deposits(t, w) > before })
		bob.Start()
		alice.UntilDelivered(ids...)
		if n := deposits(t, w) - before; n > count {
			t.Errorf("%d copies of %d texts were left at three mailboxes, although the two talked", n, count)
		}
	})
}

// deposits is how many envelopes all nodes have taken.
func deposits(t *testing.T, w *world) (n int64) {
	t.Helper()
	for _, c := range w.ways {
		s, err := c.Mail.NodeStatus(context.Background(), &apiv1.NodeStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		n += s.Deposits
	}
	return n
}

// TestMailboxLastSeen: when a mailbox was last seen is still known after a restart: as
// of the end of the run, or where that was sudden, of not long before.
func TestMailboxLastSeen(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*nodetest.User)
		back time.Duration
	}{
		{"stopped", (*nodetest.User).Stop, 0},
		{"killed", (*nodetest.User).Crash, 20 * time.Minute}, // noted every 10, and a node may be silent for 8
	} {
		t.Run(test.name, func(t *testing.T) {
			simulateMail(t, 3, func(t *testing.T, w *world) {
				for _, c := range w.ways {
					c.Behave(nodetest.Behaviour{})
				}
				alice := w.user("alice")
				nodetest.Befriend(alice, w.user("bob"))
				housed(alice, 3)
				time.Sleep(time.Hour)
				ended := time.Now()
				test.end(alice)
				for _, c := range w.ways {
					c.Stop()
				}
				alice.Start()
				list := mailboxes(alice).Mailboxes
				if len(list) != 3 {
					t.Fatalf("there are %d mailboxes", len(list))
				}
				for _, m := range list {
					if back := ended.Sub(time.UnixMilli(m.LastSeenMs)).Truncate(time.Second); back < 0 || back > test.back {
						t.Errorf("a mailbox was last seen %v before the end, want at most %v", back, test.back)
					}
				}
			})
		})
	}
}
