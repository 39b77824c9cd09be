package node_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
)

// oneTime makes a one-time invite for somebody.
func oneTime(u *nodetest.User, name string) string {
	return u.Invite(&apiv1.CreateInviteRequest{Name: name})
}

// announced waits until u's records are where others find them.
func announced(u *nodetest.User) {
	u.Until("it is announced", func() bool {
		s, err := u.Status(context.Background(), &apiv1.StatusRequest{})
		return err == nil && s.PublishGoal > 0 && s.Published == s.PublishGoal
	})
}

// TestE05_RecordsOfAContact: how many records of a user a node keeps where every
// node keeps all of them, which the quotas of docs/spec/discovery.md, section 4, are
// made for: 6 for a contact and 6 for the invite that made it, on its day, and 9 for
// the contact in the night after.
func TestE05_RecordsOfAContact(t *testing.T) {
	lasting(t)
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		const users = 2
		for _, want := range []struct {
			after   time.Duration
			records int
			expired int // may not have been swept yet
		}{{time.Hour, users*6 + 6, 0}, {27 * time.Hour, users * 9, 6}} {
			time.Sleep(want.after)
			announced(alice)
			announced(bob)
			for i, node := range w.ways {
				if got := node.Discovery.Status().Records; got < want.records || got > want.records+want.expired {
					t.Errorf("node %d keeps %d records after %v, want %d", i, got, want.after, want.records)
				}
			}
		}
	})
}

// TestInviterOffline answers an invite, and writes, while its maker is away.
func TestInviterOffline(t *testing.T) {
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		link := oneTime(alice, "bob")
		announced(alice)
		alice.Stop()
		if c := bob.Accept(link, "alice"); c.State != "pending" {
			t.Errorf("the contact is %s", c.State)
		}
		ids := bob.Say("alice", "you are not there", "so read this later")
		time.Sleep(time.Hour)
		if state := bob.State(ids[0]); state != "queued" {
			t.Errorf("the first text is %s", state)
		}
		alice.Start()
		back := time.Now()
		bob.UntilDelivered(ids...)
		if took := time.Since(back); took > 2*time.Minute {
			t.Errorf("it was delivered %v after the inviter returned", took)
		}
		alice.UntilDelivered(alice.Say("bob", "here I am")...)
		agree(t, alice, bob, 3)
	})
}

// TestNoCommunityNode answers an invite while no community node can be reached:
// the contact is pending, the error names the next step, and when a node comes
// back everything goes on by itself.
func TestNoCommunityNode(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		link := oneTime(alice, "bob")
		announced(alice)
		w.Blackhole(w.ways[0].IP)
		if c := bob.Accept(link, "alice"); c.State != "pending" {
			t.Errorf("the contact is %s", c.State)
		}
		if c := bob.Accept(link, "alice"); c.State != "pending" || len(contacts(t, bob)) != 1 {
			t.Error("accepting again made another contact")
		}
		_, err := bob.Send(context.Background(), &apiv1.SendRequest{Conversation: "alice", Texts: []string{"too early"}})
		wantCode(t, err, node.CodeNetwork)
		time.Sleep(10 * time.Minute)
		w.Heal()
		bob.UntilEstablished("alice")
		alice.UntilDelivered(alice.Say("bob", "found you")...)
		agree(t, alice, bob, 1)
	})
}

// TestHalfOfTheCommunityDies kills four of eight community nodes for good. Two
// contacts that restart, under new names in the transport, find each other.
func TestHalfOfTheCommunityDies(t *testing.T) {
	simulate(t, 8, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		nodetest.Befriend(alice, bob)
		announced(alice)
		announced(bob)
		alice.Stop()
		bob.Stop()
		for _, i := range []int{0, 3, 4, 6} {
			w.ways[i].Kill()
		}
		alice.Start()
		bob.Start()
		alice.UntilDelivered(alice.Say("bob", "still here")...)
		bob.UntilDelivered(bob.Say("alice", "so am I")...)
		agree(t, alice, bob, 2)
	})
}

// TestMove has a contact return with another address after a day, when its old
// records are gone.
func TestMove(t *testing.T) {
	lasting(t)
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		bob.Stop()
		ids := alice.Say("bob", "where are you?")
		time.Sleep(26 * time.Hour)
		moved := w.userWith("bob", nodetest.Options{Home: bob.Home})
		alice.UntilDelivered(ids...)
		moved.UntilDelivered(moved.Say("alice", "elsewhere")...)
		agree(t, alice, moved, before+2)
	})
}

// TestBothInvite has two people answer each other's invites: they are one
// contact to each other, or are told so.
func TestBothInvite(t *testing.T) {
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		toBob, toAlice := oneTime(alice, "bob"), oneTime(bob, "alice")
		announced(alice)
		announced(bob)
		done := make(chan struct{})
		go func() {
			defer close(done)
			alice.Accept(toAlice, "bob")
		}()
		bob.Accept(toBob, "alice")
		<-done
		alice.UntilEstablished("bob")
		bob.UntilEstablished("alice")
		ids := alice.Say("bob", numbered("from alice", 5)...)
		bob.UntilDelivered(bob.Say("alice", numbered("from bob", 5)...)...)
		alice.UntilDelivered(ids...)
		alice.UntilDelivered(alice.Say("bob", "and on")...)
		if a, b := len(contacts(t, alice)), len(contacts(t, bob)); a != 1 || b != 1 {
			t.Errorf("alice has %d contacts, bob %d", a, b)
		}
		agree(t, alice, bob, 11)
	})
}

func contacts(t *testing.T, u *nodetest.User) []*apiv1.Contact {
	t.Helper()
	out, err := u.ListContacts(context.Background(), &apiv1.ListContactsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return out.Contacts
}

// wantCode checks that err is an answer for a person: a sentence of the code,
// with a next step.
func wantCode(t *testing.T, err error, code node.Code) {
	t.Helper()
	var e *node.Error
	switch {
	case !errors.As(err, &e):
		t.Errorf("the error is %v, not one for a person", err)
	case e.Code != code:
		t.Errorf("the error is %q (%s), want %s", e.Message, e.Code, code)
	case e.Message == "" || e.Hint == "":
		t.Errorf("the error %q has the hint %q", e.Message, e.Hint)
	}
}
