package node_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

// TestMetered: where bytes cost money hours without a text take a fraction of what
// they take elsewhere, contacts are found all the same, and a text leaves at once.
func TestMetered(t *testing.T) {
	type idle struct {
		bytes, directory int64
		text             time.Duration
	}
	live := func(t *testing.T, metered bool) (d idle) {
		nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
			n.SetLatency(10 * time.Millisecond)
			w := &world{Network: n, t: t, ways: nodetest.NewCommunities(t, n, 3)}
			alice := w.userWith("alice", nodetest.Options{Budget: transport.Budget{Metered: metered}})
			bob := w.user("bob")
			nodetest.Befriend(alice, bob)
			alice.UntilDelivered(alice.Say("bob", "good morning")...)
			announced(alice)
			used := func() (all, directory int64) {
				s, err := alice.Status(ctx, &apiv1.StatusRequest{})
				if err != nil {
					t.Fatal(err)
				}
				if s.Budget.Metered != metered {
					t.Errorf("status says that the connection is metered: %v", s.Budget.Metered)
				}
				for _, u := range s.Budget.Usage {
					all += u.Sent + u.Received
					if u.Subsystem == transport.Directory.String() {
						directory += u.Sent + u.Received
					}
				}
				return all, directory
			}
			all, directory := used()
			time.Sleep(3 * time.Hour)
			d.bytes, d.directory = used()
			d.bytes, d.directory = d.bytes-all, d.directory-directory

			// Bob knows nothing of where she is but what she announced last.
			bob.Restart()
			began := time.Now()
			alice.UntilDelivered(alice.Say("bob", "good night")...)
			d.text = time.Since(began)
			alice.Stop()
			bob.Stop()
		})
		return d
	}
	usual, metered := live(t, false), live(t, true)
	t.Logf("usual: %+v, metered: %+v", usual, metered)
	if metered.bytes > usual.bytes/3 {
		t.Errorf("three hours take %d bytes where they cost money, %d elsewhere", metered.bytes, usual.bytes)
	}
	if metered.text > 10*time.Second {
		t.Errorf("a text takes %v where bytes cost money, %v elsewhere", metered.text, usual.text)
	}
}

// TestUsageOutlivesRun: what was used today is known as soon as the node is there
// again, with a limit and without, and not once the day is over.
func TestUsageOutlivesRun(t *testing.T) {
	for name, limit := range map[string]int64{"no limit": 0, "a limit": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
				n.SetLatency(10 * time.Millisecond)
				w := &world{Network: n, t: t, ways: nodetest.NewCommunities(t, n, 3)}
				ahead := time.Duration(0) // her clock
				alice := w.userWith("alice", nodetest.Options{
					Budget: transport.Budget{Bytes: limit}, Now: func() time.Time { return time.Now().Add(ahead) },
				})
				nodetest.Befriend(alice, w.user("bob"))
				alice.UntilDelivered(alice.Say("bob", "good morning")...)
				used := func() int64 {
					s, err := alice.Status(ctx, &apiv1.StatusRequest{})
					if err != nil {
						t.Fatal(err)
					}
					return s.Budget.BytesToday
				}
				was := used()
				alice.Stop()
				alice.Start()
				if got := used(); got < was {
					t.Errorf("%d bytes were used before the restart, %d after it", was, got)
				}
				alice.Stop()
				ahead = 24 * time.Hour
				alice.Start()
				if got := used(); got >= was {
					t.Errorf("the next day begins with %d bytes", got)
				}
			})
		})
	}
}

// TestSpentSaysNothingOfMailboxes: once the day's bytes are used up mailboxes are not
// asked, and are not blamed for it: nobody is told that they fail, but that they wait,
// and until when, and the next day they are collected from as before.
func TestSpentSaysNothingOfMailboxes(t *testing.T) {
	lasting(t)
	simulateMail(t, 3, func(t *testing.T, w *world) {
		for _, c := range w.ways {
			c.Behave(nodetest.Behaviour{})
		}
		alice := w.userWith("alice", nodetest.Options{Budget: transport.Budget{Bytes: 1 << 30}, Now: func() time.Time { return time.Now().Add(23 * time.Hour) }})
		bob := w.user("bob")
		nodetest.Befriend(alice, bob)
		housed(alice, 3)
		bob.UntilDelivered(bob.Say("alice", "good morning")...)
		_, today := alice.Contacts.Meter().Usage()
		var used transport.Usage
		used.Received[transport.Directory] = 1 << 30
		alice.Contacts.Meter().Restore(used, today)
		alice.Restart()
		seen := uint64(0)
		for _, e := range alice.Events(0) {
			seen = e.Number
		}
		time.Sleep(20 * time.Minute)
		if n := health(alice, seen); n != 0 {
			t.Errorf("%d events say how the mailboxes are", n)
		}
		waits := func(want int32) {
			t.Helper()
			list, state := mailboxes(alice), map[bool]string{true: "paused", false: "good"}[want > 0]
			for _, m := range list.Mailboxes {
				if m.State != state {
					t.Errorf("a mailbox is %s, want %s", m.State, state)
				}
			}
			if list.Paused != want || list.Healthy != 3-want || list.Total != 3 || list.Needed != 2 {
				t.Errorf("of %d mailboxes %d wait, want %d; %d work; needed: %d", list.Total, list.Paused, want, list.Healthy, list.Needed)
			}
		}
		waits(3)
		until := func(what string, err error) {
			t.Helper()
			if !strings.Contains(fmt.Sprint(err), "until midnight UTC") {
				t.Errorf("%s: %v", what, err)
			}
		}
		_, err := alice.Mailboxes().TestMailbox(ctx, &apiv1.TestMailboxRequest{})
		until("a test", err)
		_, err = alice.Mailboxes().AddMailbox(ctx, &apiv1.AddMailboxRequest{Address: address(w.ways[0])})
		until("one more", err)
		doctor, err := alice.Doctor(ctx, &apiv1.DoctorRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range doctor.Checks {
			if c.Name == "mailboxes" && (!c.Ok || !strings.Contains(c.Text, "until midnight UTC")) {
				t.Errorf("doctor says %q", c.Text)
			}
		}
		time.Sleep(time.Hour) // and it is another day
		alice.Stop()
		bob.UntilState("held", bob.Say("alice", "good night")...)
		bob.Stop()
		alice.Start()
		alice.Until("mail is collected again", func() bool { return len(alice.Messages("bob")) == 2 })
		waits(0)
	})
}
