package node_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
)

// TestA06_FirstMessageReplayed replays a first message a thousand times, also
// across a restart and a crash: one session, shown once.
func TestA06_FirstMessageReplayed(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		link := oneTime(alice, "")
		announced(alice)
		s := newStranger(t, alice, link)
		first := s.text(t, "once")
		again := slices.Repeat([][]byte{first}, 333)
		door := w.knock(t, alice, link)
		door.send(t, first)
		door.send(t, s.introduction(t)...)
		door.send(t, again...)
		door.hangUp()
		for _, stop := range []func(){alice.Stop, alice.Crash} {
			stop()
			alice.Start()
			door := w.knock(t, alice, link)
			door.send(t, again...)
			door.hangUp()
		}
		if n := len(sessions(t, alice, "stranger")); n != 1 {
			t.Errorf("there are %d sessions", n)
		}
		if n := len(alice.Messages("stranger")); n != 1 {
			t.Errorf("%d messages are shown", n)
		}
		for _, e := range alice.Events(0) {
			if strings.Contains(e.What, "twice") {
				t.Error("a repetition passed for another person's answer")
			}
		}
	})
}

// TestA13_SameNameOtherKey has somebody else appear under a contact's name: a
// request of its own, unverified, in a conversation of its own.
func TestA13_SameNameOtherKey(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, _ := w.talking()
		if _, err := alice.SetVerified(context.Background(), &apiv1.SetVerifiedRequest{Contact: "bob", Verified: true}); err != nil {
			t.Fatal(err)
		}
		link := reusable(alice)
		mallory := w.user("bob")
		mallory.Accept(link, "alice")
		mallory.Say("alice", "it is me, bob")
		r := untilRequests(t, alice, 1)[0]
		if r.Name == "bob" || r.Verified || r.Id == alice.Contact("bob").Id {
			t.Errorf("the request is %v", r)
		}
		if _, err := alice.ApproveRequest(context.Background(), &apiv1.ApproveRequestRequest{Id: r.Id}); err != nil {
			t.Fatal(err)
		}
		if c := alice.Contact("bob"); !c.Verified || c.Fingerprint == alice.Contact(r.Id).Fingerprint {
			t.Error("the contact's own keys are not what they were")
		}
		if n := len(alice.Messages("bob")); n != before {
			t.Errorf("the contact's conversation shows %d messages", n)
		}
	})
}

// TestA15_Reinstalled has a contact lose everything and return with other keys:
// an unverified contact of its own. What waits for the old keys does not go to
// the new ones.
func TestA15_Reinstalled(t *testing.T) {
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		bob.Stop()
		secret := alice.Say("bob", "for the old keys alone")
		again := w.user("bob")
		again.Accept(oneTime(alice, ""), "alice")
		alice.Until("the new keys are a contact", func() bool {
			c := alice.Contact("bob-2")
			return c != nil && c.State == "established" && !c.Verified
		})
		alice.UntilDelivered(alice.Say("bob-2", "is it you?")...)
		time.Sleep(2 * time.Hour)
		if state := alice.State(secret[0]); state != "queued" {
			t.Errorf("what was for the old keys is %s", state)
		}
		if got := again.Texts("alice"); len(got) != 1 || got[0] != "alice: is it you?" {
			t.Errorf("the new keys were told %q", got)
		}
	})
}

// TestA15_OtherDeviceOfAContact has a thief of a contact's account, who lacks its
// device, answer an invite: no session, and the user is told.
func TestA15_OtherDeviceOfAContact(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		bob.Stop()
		account, old, _ := selfOf(t, bob.Home)
		device, err := identity.NewDeviceKey(rand.Reader, account.Public())
		if err != nil {
			t.Fatal(err)
		}
		list, err := identity.NewDeviceList(account, 2, []identity.DeviceEntry{
			{ID: 1, Device: old.Public().Hash(), Added: 1}, {ID: 2, Device: device.Hash(), Added: 2},
		})
		if err != nil {
			t.Fatal(err)
		}
		link := oneTime(alice, "")
		announced(alice)
		thief := newStrangerAs(t, account, device, list.Marshal(), bundleOf(t, alice, link), link)
		door := w.knock(t, alice, link)
		door.send(t, thief.introduction(t)...)
		door.send(t, thief.text(t, "it is me, bob"))
		if heard := door.hangUp(); len(heard) != 0 {
			t.Errorf("%d envelopes went to the thief", len(heard))
		}
		told := false
		for _, e := range alice.Events(0) {
			told = told || strings.Contains(e.What, "another device claims")
		}
		if !told {
			t.Error("the user was told nothing")
		}
		if n := len(contacts(t, alice)); n != 1 || len(alice.Messages("bob")) != before {
			t.Errorf("there are %d contacts, and %d messages with bob", n, len(alice.Messages("bob")))
		}
	})
}

// TestA17_InviteUsedTwice has two people answer a one-time invite: the second
// stays outside, the user is warned, and nobody passes for verified
// (docs/spec/invite.md, section 6).
func TestA17_InviteUsedTwice(t *testing.T) {
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, bob, mallory := w.user("alice"), w.user("bob"), w.user("mallory")
		link := oneTime(alice, "bob")
		announced(alice)
		done := make(chan struct{})
		go func() { // both before either was answered
			defer close(done)
			mallory.Accept(link, "alice")
		}()
		bob.Accept(link, "alice")
		<-done
		var warning nodetest.Event
		alice.Until("a warning", func() bool {
			for _, e := range alice.Events(0) {
				if strings.Contains(e.What, "used twice") {
					warning = e
				}
			}
			return warning.What != ""
		})
		if warning.Invite == "" || warning.Name != "bob" {
			t.Errorf("the warning is %+v", warning)
		}
		all := contacts(t, alice)
		if len(all) != 1 || all[0].Verified {
			t.Errorf("alice's contacts are %v", all)
		}
		time.Sleep(time.Hour)
		established := 0
		for _, u := range []*nodetest.User{bob, mallory} {
			if c := u.Contact("alice"); c.State == "established" {
				established++
			}
		}
		if established != 1 {
			t.Errorf("%d of two are established", established)
		}
	})
}

// TestA23_JunkFirstMessages floods an invite's tag: without the invite's secret
// junk costs one MAC each; with it, it spends a budget that comes back. Neither
// makes or shows anything (docs/spec/handshake.md, section 4).
func TestA23_JunkFirstMessages(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		link := reusable(alice)
		announced(alice)
		keys := parseLink(t, link).Keys()
		bundle := bundleOf(t, alice, link)
		door := w.knock(t, alice, link)

		junk := make([][]byte, 2000)
		for i := range junk {
			junk[i] = make([]byte, 8<<10)
			_, _ = rand.Read(junk[i])
			copy(junk[i], keys.Tag[:])
		}
		door.send(t, junk...)
		door.send(t, newStranger(t, alice, link).text(t, "after the junk"))
		if n := len(requests(t, alice)); n != 1 {
			t.Fatalf("junk without the secret keeps people out: %d requests", n)
		}

		// Somebody who holds the link passes the gate, with keys that nobody has.
		device, err1 := identity.NewDeviceKey(rand.Reader, bundle.Device.Account())
		other, err2 := identity.NewDeviceKey(rand.Reader, bundle.Device.Account())
		prekey, err3 := handshake.NewPrekey(rand.Reader)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		fake := handshake.NewBundle(other, prekey, 1, time.Now().Add(time.Hour), keys.Bundle)
		door = w.knock(t, alice, link)
		var flood [][]byte
		for range 60 {
			hx1, _, err := handshake.Initiate(rand.Reader, device, fake, keys.PSK)
			if err != nil {
				t.Fatal(err)
			}
			e, err := envelope.New(envelope.Tag(keys.Tag), hx1, make([]byte, 8<<10-envelope.TagSize-len(hx1)))
			if err != nil {
				t.Fatal(err)
			}
			flood = append(flood, e)
		}
		late := newStranger(t, alice, link).text(t, "in the flood")
		if door.offer(t, append(flood, late)...) {
			t.Error("a flood of handshakes was taken")
		}
		if n := len(requests(t, alice)); n != 1 {
			t.Errorf("the budget for handshakes let a flood through: %d requests", n)
		}
		time.Sleep(2 * time.Second)
		door = w.knock(t, alice, link)
		door.send(t, late)
		if n := len(requests(t, alice)); n != 2 {
			t.Errorf("after the flood there are %d requests", n)
		}
	})
}

// clock is a clock that a test sets wrong. It is advanced by nothing but the
// bubble's time and move.
type clock struct{ offset chan time.Duration }

func newClock(offset time.Duration) *clock {
	c := &clock{offset: make(chan time.Duration, 1)}
	c.offset <- offset
	return c
}

func (c *clock) now() time.Time {
	d := <-c.offset
	c.offset <- d
	return time.Now().Add(d)
}

func (c *clock) move(d time.Duration) { c.offset <- <-c.offset + d }

// away has u's node stand still, again and again, until days have passed. That
// is how time passes fast for a node, which does not believe more of its clock.
func (c *clock) away(u *nodetest.User, days int) {
	for range days {
		u.Stop()
		c.move(24 * time.Hour)
		u.Start()
		time.Sleep(30 * time.Second) // it announces and tidies up
	}
}

// hasPrekey says whether the secret half of a prekey is in u's store.
func hasPrekey(t *testing.T, u *nodetest.User, id handshake.PrekeyID) bool {
	t.Helper()
	err := u.Store.View(context.Background(), func(tx *store.Tx) error {
		_, err := tx.Prekey(id[:])
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// TestA24_PrekeysAreErased: a prekey's secret is gone when its invite was used
// or revoked, or has expired, or when it was replaced and the time of grace is over.
func TestA24_PrekeysAreErased(t *testing.T) {
	lasting(t)
	simulate(t, 1, func(t *testing.T, w *world) {
		c := newClock(0)
		alice := w.userWith("alice", nodetest.Options{Now: c.now})
		bob := w.user("bob")
		link := oneTime(alice, "bob")
		used := bundleOf(t, alice, link).PrekeyID
		if !hasPrekey(t, alice, used) {
			t.Fatal("an open invite has no prekey")
		}
		bob.Accept(link, "alice")
		alice.UntilEstablished("bob")
		if hasPrekey(t, alice, used) {
			t.Error("the prekey of a used invite is there")
		}

		out, err := alice.CreateInvite(context.Background(), &apiv1.CreateInviteRequest{})
		if err != nil {
			t.Fatal(err)
		}
		revoked := bundleOf(t, alice, out.Invite.Link).PrekeyID
		if _, err := alice.RevokeInvite(context.Background(), &apiv1.RevokeInviteRequest{Id: out.Invite.Id}); err != nil {
			t.Fatal(err)
		}
		if hasPrekey(t, alice, revoked) {
			t.Error("the prekey of a revoked invite is there")
		}

		short := alice.Invite(&apiv1.CreateInviteRequest{ExpiresS: 3600})
		expired := bundleOf(t, alice, short).PrekeyID
		lasting := alice.Invite(&apiv1.CreateInviteRequest{Reusable: true, ExpiresS: 300 * 24 * 3600})
		replaced := bundleOf(t, alice, lasting).PrekeyID
		c.away(alice, 3)
		if !hasPrekey(t, alice, replaced) {
			t.Error("a replaced prekey is gone before the time of grace is over")
		}
		c.away(alice, 8)
		if hasPrekey(t, alice, replaced) {
			t.Error("a replaced prekey is there after the time of grace")
		}
		c.away(alice, 21)
		if hasPrekey(t, alice, expired) {
			t.Error("the prekey of an expired invite is there")
		}
	})
}

// TestInviteErrors: every refusal around invites is a sentence with a next step.
func TestInviteErrors(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		ctx := context.Background()
		create := func(r *apiv1.CreateInviteRequest) error { _, err := alice.CreateInvite(ctx, r); return err }
		accept := func(u *nodetest.User, link string) error {
			_, err := u.AcceptInvite(ctx, &apiv1.AcceptInviteRequest{Link: link})
			return err
		}
		wantCode(t, create(&apiv1.CreateInviteRequest{ExpiresS: 59}), node.CodeUsage)
		wantCode(t, create(&apiv1.CreateInviteRequest{ExpiresS: 366 * 24 * 3600}), node.CodeUsage)
		link := oneTime(alice, "")
		wantCode(t, accept(alice, link), node.CodeRefused)
		wantCode(t, accept(bob, link), node.CodeRefused)
		wantCode(t, accept(bob, link[:len(link)-3]), node.CodeUsage)
		wantCode(t, accept(bob, "https://example.org"), node.CodeUsage)
		revoke := func(id string) error {
			_, err := alice.RevokeInvite(ctx, &apiv1.RevokeInviteRequest{Id: id})
			return err
		}
		wantCode(t, revoke("no such id"), node.CodeNotFound)
		list, err := alice.ListInvites(ctx, &apiv1.ListInvitesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, revoke(list.Invites[0].Id), node.CodeRefused) // it is used
		short := alice.Invite(&apiv1.CreateInviteRequest{ExpiresS: 60})
		time.Sleep(3 * time.Minute)
		carol := w.user("carol")
		wantCode(t, accept(carol, short), node.CodeRefused)
		open := 0
		for ; open < 200; open++ {
			if err := create(&apiv1.CreateInviteRequest{}); err != nil {
				wantCode(t, err, node.CodeQuota)
				break
			}
		}
		if open != 99 {
			t.Errorf("%d more invites were made", open)
		}
	})
}
