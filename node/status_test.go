package node_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
)

// TestSafetyNumber: two contacts read the same number, and nobody else's is it.
func TestSafetyNumber(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		carol := w.user("carol")
		nodetest.Befriend(alice, carol)
		number := func(u *nodetest.User, of string) *apiv1.GetSafetyNumberResponse {
			t.Helper()
			out, err := u.GetSafetyNumber(ctx, &apiv1.GetSafetyNumberRequest{Contact: of})
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		ours, theirs := number(alice, "bob"), number(bob, "alice")
		if ours.Number != theirs.Number || ours.Qr != theirs.Qr || len(strings.ReplaceAll(ours.Number, " ", "")) != 60 {
			t.Errorf("alice reads %q, bob %q", ours.Number, theirs.Number)
		}
		if number(alice, "carol").Number == ours.Number {
			t.Error("two contacts have one number")
		}
		if alice.Contact("bob").Fingerprint != account(t, bob).Fingerprint {
			t.Error("alice holds another fingerprint than bob shows")
		}
		verify := func(verified bool) {
			if _, err := alice.SetVerified(ctx, &apiv1.SetVerifiedRequest{Contact: "bob", Verified: verified}); err != nil {
				t.Fatal(err)
			}
			alice.Restart()
			if c := alice.Contact("bob"); c.Verified != verified {
				t.Errorf("verified is %v, want %v", c.Verified, verified)
			}
		}
		verify(true)
		verify(false)
		bob.Restart()
		if number(alice, "bob").Number != ours.Number {
			t.Error("the number changed by a restart")
		}
	})
}

func account(t *testing.T, u *nodetest.User) *apiv1.GetIdentityResponse {
	t.Helper()
	out, err := u.GetIdentity(ctx, &apiv1.GetIdentityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestIdentityStays: the account and the device are the same after a restart and
// a crash; the transport's name is another one every time.
func TestIdentityStays(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		first, peer := account(t, alice), alice.Contacts.ID()
		for _, stop := range []func(){alice.Stop, alice.Crash} {
			stop()
			alice.Start()
			again := account(t, alice)
			if again.Fingerprint != first.Fingerprint || len(again.Devices) != 1 || again.Devices[0].Id != first.Devices[0].Id {
				t.Error("the identity changed")
			}
			if alice.Contacts.ID() == peer {
				t.Error("the transport's name is the one of the last run")
			}
		}
	})
}

// TestRename: a start with another name renames the account and tells contacts,
// once and not those who are blocked; what they call us stays as it is.
func TestRename(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob, carol := w.user("alice"), w.user("bob"), w.user("carol")
		nodetest.Befriend(alice, bob)
		nodetest.Befriend(alice, carol)
		if _, err := alice.SetBlocked(ctx, &apiv1.SetBlockedRequest{Contact: "carol", Blocked: true}); err != nil {
			t.Fatal(err)
		}
		told := func(u *nodetest.User) (names []string) {
			for _, e := range u.Events(0) {
				if e.What == "profile" {
					names = append(names, e.Name+" is "+e.Profile)
				}
			}
			return names
		}
		before, toCarol := told(bob), told(carol)
		time.Sleep(time.Hour) // the user hears such a thing about a contact once an hour
		for _, name := range []string{"Alice\nLiddell", "Alice Liddell", "\u200b", ""} {
			alice.Stop()
			alice.Name = name
			alice.Start()
			if got := account(t, alice).Name; got != "Alice Liddell" {
				t.Fatalf("started with %q, the account is called %q", name, got)
			}
			alice.UntilDelivered(alice.Say("bob", "it is me")...)
		}
		if got, want := told(bob), append(before, "alice is Alice Liddell"); !slices.Equal(got, want) {
			t.Errorf("bob was told %q, want %q", got, want)
		}
		if got := told(carol); !slices.Equal(got, toCarol) {
			t.Errorf("carol, who is blocked, was told %q", got)
		}
		bob.Stop()
		waiting := func() int64 {
			s, err := alice.Status(ctx, &apiv1.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return s.Outbox
		}
		already := waiting()
		alice.Name = "Alice P. Liddell"
		alice.Restart()
		alice.Restart()
		if n := waiting() - already; n != 1 {
			t.Errorf("%d more envelopes wait, want one for bob", n)
		}
		bob.Start()
		if c := bob.Contact("alice"); c == nil {
			t.Error("bob's name for alice changed by itself")
		}
	})
}

// TestRenameBeforeTheyAnswer: somebody whose keys have not been found is told
// the name of the day they are.
func TestRenameBeforeTheyAnswer(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		link := bob.Invite(&apiv1.CreateInviteRequest{})
		w.ways[0].Stop()
		alice.Accept(link, "bob")
		alice.Stop()
		alice.Name = "Alice"
		alice.Start()
		w.ways[0].Start()
		bob.UntilEstablished("Alice")
	})
}

// TestCommunityNodeHasNoAccount: whatever only a person's node does is refused,
// with the next step, and status says what the node is.
func TestCommunityNodeHasNoAccount(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		st, err := store.Open(store.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		c := w.ways[0]
		n, err := node.New(ctx, node.Config{Store: st, Discovery: c.Discovery, Host: c.Host, Role: node.RoleCommunity, Version: "test"})
		if err != nil {
			t.Fatal(err)
		}
		run, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- n.Run(run) }()
		for name, call := range map[string]func() error{
			"identity": func() error { _, err := n.GetIdentity(ctx, &apiv1.GetIdentityRequest{}); return err },
			"invite":   func() error { _, err := n.CreateInvite(ctx, &apiv1.CreateInviteRequest{}); return err },
			"accept":   func() error { _, err := n.AcceptInvite(ctx, &apiv1.AcceptInviteRequest{}); return err },
			"contacts": func() error { _, err := n.ListContacts(ctx, &apiv1.ListContactsRequest{}); return err },
			"block":    func() error { _, err := n.SetBlocked(ctx, &apiv1.SetBlockedRequest{}); return err },
			"send":     func() error { _, err := n.Send(ctx, &apiv1.SendRequest{}); return err },
			"trace":    func() error { _, err := n.Trace(ctx, &apiv1.TraceRequest{}); return err },
			"cancel":   func() error { _, err := n.Cancel(ctx, &apiv1.CancelRequest{}); return err },
			"ping":     func() error { _, err := n.Ping(ctx, &apiv1.PingRequest{}); return err },
			"netcheck": func() error { _, err := n.Netcheck(ctx, &apiv1.NetcheckRequest{}); return err }, // it knows no other to probe
			"events":   func() error { _, err := n.ListEvents(ctx, &apiv1.ListEventsRequest{}); return err },
			"ack":      func() error { _, err := n.AckEvents(ctx, &apiv1.AckEventsRequest{}); return err },
		} {
			t.Log(name)
			wantCode(t, call(), node.CodeRefused)
		}
		if s, err := n.Status(ctx, &apiv1.StatusRequest{}); err != nil || s.Role != "community" || s.Account != "" || s.Dht.Mode != "server" {
			t.Errorf("status is %v, %v", s, err)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestDoctorAtOnce asks in the moment of the start, when no community node has
// answered yet: that is not called wrong.
func TestDoctorAtOnce(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		w.honest()
		alice := w.user("alice")
		housed(alice, 3)
		alice.Stop()
		alice.Start()
		out, err := alice.Doctor(ctx, &apiv1.DoctorRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range out.Checks {
			if !c.Ok && (c.Name == "directory" || c.Name == "relays") {
				t.Errorf("%v", c)
			}
		}
	})
}

// TestDoctor finds nothing wrong with a healthy node, and names the next step for
// what is.
func TestDoctor(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		w.honest()
		alice, bob := w.talking()
		housed(alice, 3)
		announced(alice)
		checks := func() map[string]*apiv1.Check {
			t.Helper()
			out, err := alice.Doctor(ctx, &apiv1.DoctorRequest{})
			if err != nil {
				t.Fatal(err)
			}
			all := make(map[string]*apiv1.Check)
			for _, c := range out.Checks {
				if c.Text == "" || c.Ok != (c.Hint == "") {
					t.Errorf("the check %v", c)
				}
				all[c.Name] = c
			}
			return all
		}
		for name, c := range checks() {
			if !c.Ok && name != "protection" { // these stores have no passphrase
				t.Errorf("a healthy node: %v", c)
			}
		}
		bob.Stop()
		alice.Say("bob", "wait")
		for _, c := range w.ways {
			c.Kill()
		}
		time.Sleep(5 * time.Minute)
		after := checks()
		if after["directory"].Ok {
			t.Errorf("without community nodes: %v", after["directory"])
		}
		if o := after["outbox"]; !o.Ok || strings.Contains(o.Text, ": 0;") {
			t.Errorf("with something waiting, which is no fault: %v", o)
		}
	})
}
