package node_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/message"
)

func reusable(u *nodetest.User) string {
	return u.Invite(&apiv1.CreateInviteRequest{Reusable: true})
}

func requests(t *testing.T, u *nodetest.User) []*apiv1.Contact {
	t.Helper()
	out, err := u.ListRequests(context.Background(), &apiv1.ListRequestsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return out.Requests
}

// untilRequests waits for count requests that show what their authors wrote.
func untilRequests(t *testing.T, u *nodetest.User, count int) []*apiv1.Contact {
	t.Helper()
	u.Until(fmt.Sprint(count, " requests"), func() bool {
		shown := 0
		for _, r := range requests(t, u) {
			if r.FirstText != "" {
				shown++
			}
		}
		return shown == count
	})
	return requests(t, u)
}

// TestP14_SilenceBeforeApproval: somebody who answered a reusable invite gets no
// envelope at all before they are approved, so no receipt and no name. D01 for
// strangers.
func TestP14_SilenceBeforeApproval(t *testing.T) {
	lasting(t)
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		link := reusable(alice)
		announced(alice)
		wire := w.record()
		bob.Accept(link, "alice")
		ids := bob.Say("alice", "let me in", "please")
		r := untilRequests(t, alice, 1)[0]
		if r.FirstText != "let me in" || r.State != "request" || r.Name != "bob" || r.Verified {
			t.Errorf("the request is %v", r)
		}
		_, err := alice.Send(context.Background(), &apiv1.SendRequest{Conversation: r.Id, Texts: []string{"who are you?"}})
		wantCode(t, err, node.CodeRefused)
		time.Sleep(8 * time.Hour)
		if n := len(wire.of(alice.IP, bob.IP)); n != 0 {
			t.Fatalf("%d envelopes left for somebody who was not approved", n)
		}
		if got := bob.State(ids[0]); got != "sent" {
			t.Errorf("the first text is %s", got)
		}
		if c := bob.Contact("alice"); c.State != "pending" {
			t.Errorf("bob sees a contact that is %s", c.State)
		}
		if _, err := alice.ApproveRequest(context.Background(), &apiv1.ApproveRequestRequest{Id: r.Id}); err != nil {
			t.Fatal(err)
		}
		bob.UntilDelivered(ids...)
		bob.UntilEstablished("alice")
		alice.UntilDelivered(alice.Say("bob", "welcome")...)
		agree(t, alice, bob, 3)
		_, err = alice.ApproveRequest(context.Background(), &apiv1.ApproveRequestRequest{Id: r.Id})
		wantCode(t, err, node.CodeRefused)
	})
}

// TestP14_WhatARequestSays: whoever waits to be approved may write texts and
// nothing else that is kept (docs/spec/message.md, section 5).
func TestP14_WhatARequestSays(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		link := reusable(alice)
		announced(alice)
		s := newStranger(t, alice, link)
		door := w.knock(t, alice, link)
		door.send(t, s.introduction(t)...)
		door.send(t, s.text(t, "let me in"))
		r := untilRequests(t, alice, 1)[0]
		s.seq++
		door.send(t, s.seal(t, &message.Message{
			Seq: s.seq, Prev: s.prev, Depth: s.seq, Time: 1, Content: &message.Edit{Target: s.prev, Body: "and out"},
		}))
		door.hangUp()
		if n := messagesOf(t, alice, r.Id); n != 1 {
			t.Errorf("%d messages of a request are kept, want its text", n)
		}
	})
}

func messagesOf(t *testing.T, u *nodetest.User, handle string) (n int64) {
	t.Helper()
	if err := u.Store.View(ctx, func(tx *store.Tx) error {
		all, err := tx.Contacts()
		for _, c := range all {
			if c.Handle == handle {
				n, err = tx.CountMessages(c.ID)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestReject forgets a request; its author hears nothing, then or later.
func TestReject(t *testing.T) {
	lasting(t)
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		link := reusable(alice)
		wire := w.record()
		bob.Accept(link, "alice")
		ids := bob.Say("alice", "let me in")
		r := untilRequests(t, alice, 1)[0]
		if _, err := alice.RejectRequest(context.Background(), &apiv1.RejectRequestRequest{Id: r.Id}); err != nil {
			t.Fatal(err)
		}
		bob.Say("alice", "hello?")
		time.Sleep(8 * time.Hour)
		if n := len(requests(t, alice)) + len(contacts(t, alice)); n != 0 {
			t.Errorf("alice sees %d people", n)
		}
		if n := len(wire.of(alice.IP, bob.IP)); n != 0 {
			t.Errorf("%d envelopes left for somebody who was rejected", n)
		}
		if got := bob.State(ids[0]); got != "sent" {
			t.Errorf("the text is %s", got)
		}
		_, err := alice.RejectRequest(context.Background(), &apiv1.RejectRequestRequest{Id: r.Id})
		wantCode(t, err, node.CodeNotFound)
	})
}

// TestA07_G17_FiftyRequests answers a reusable invite sixty times. Fifty wait; the
// others are not taken, and come in when there is room. No answer spends what the
// next one needs, and nothing changes for a contact.
func TestA07_G17_FiftyRequests(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		session := sessions(t, alice, "bob")
		link := reusable(alice)
		announced(alice)
		ask := func(first []byte) bool {
			door := w.knock(t, alice, link)
			defer door.hangUp()
			return door.offer(t, first)
		}
		var refused []byte
		for i := range 60 {
			first := newStranger(t, alice, link).text(t, fmt.Sprint("stranger ", i))
			if taken := ask(first); taken != (i < 50) {
				t.Fatalf("answer %d was taken: %v", i, taken)
			}
			refused = first
		}
		all := requests(t, alice)
		if len(all) != 50 || all[0].FirstText != "stranger 0" || all[49].FirstText != "stranger 49" {
			t.Fatalf("%d requests wait", len(all))
		}
		if now := sessions(t, alice, "bob"); len(now) != 1 || !bytes.Equal(now[0].State, session[0].State) {
			t.Error("the session with a contact changed")
		}
		if _, err := alice.RejectRequest(context.Background(), &apiv1.RejectRequestRequest{Id: all[0].Id}); err != nil {
			t.Fatal(err)
		}
		if !ask(refused) || len(requests(t, alice)) != 50 {
			t.Error("there is room, and the next one is not taken")
		}
		alice.UntilDelivered(alice.Say("bob", "still here")...)
		agree(t, alice, bob, before+1)
	})
}

// TestA07_PrekeyDepletion: a stranger with a reusable invite's link fetches its
// keys and answers it 300 times, 10,000 in soak tests. There is no
// stock of keys that this could use up: the invite shows the prekey it showed
// before, other invites have their own, sessions stay as they are, and who comes
// after the storm gets the session that who came before it got.
func TestA07_PrekeyDepletion(t *testing.T) {
	handshakes := 300
	switch {
	case os.Getenv("KITH_SOAK") != "":
		handshakes = 10_000
	case testing.Short():
		handshakes = 80
	}
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		link, single := reusable(alice), oneTime(alice, "dave")
		announced(alice)
		time.Sleep(time.Minute) // and what has changed lately
		shown, own := bundleOf(t, alice, link), bundleOf(t, alice, single)
		session, seen := sessions(t, alice, "bob"), bob.Contact("alice")

		door := w.knock(t, alice, link)
		taken := 0
		for i := range handshakes {
			s := newStranger(t, alice, link)
			if door.offer(t, s.text(t, "let me in")) {
				taken++
			} else { // it ends the line of one whom it does not take
				door.hangUp()
				door = w.knock(t, alice, link)
			}
			if i%40 == 39 {
				time.Sleep(time.Second) // within the budget, so that each costs all that it may
			}
		}
		door.hangUp()
		if waiting := len(requests(t, alice)); taken != waiting || waiting != 50 {
			t.Errorf("%d of %d were taken, and %d wait", taken, handshakes, waiting)
		}
		for name, b := range map[string]*handshake.Bundle{"reusable": shown, "other": own} {
			if !hasPrekey(t, alice, b.PrekeyID) {
				t.Errorf("the prekey of the %s invite is used up", name)
			}
		}
		if now := bundleOf(t, alice, link); now.PrekeyID != shown.PrekeyID || now.Epoch != shown.Epoch {
			t.Error("the storm changed the keys that the invite shows")
		}
		if now := sessions(t, alice, "bob"); len(now) != 1 || !bytes.Equal(now[0].State, session[0].State) {
			t.Error("the session with a contact changed")
		}

		// Who holds an invite of their own does not wait behind the storm.
		dave := w.user("dave")
		dave.Accept(single, "alice")
		dave.UntilEstablished("alice")
		carol := w.user("carol")
		if c := carol.Accept(link, "alice"); c.State != "pending" {
			t.Errorf("before an answer the new session is %s", c.State)
		}
		carol.Say("alice", "it is me")
		if _, err := alice.RejectRequest(ctx, &apiv1.RejectRequestRequest{Id: requests(t, alice)[0].Id}); err != nil {
			t.Fatal(err)
		}
		alice.Until("carol's request is there", func() bool {
			return slices.ContainsFunc(requests(t, alice), func(r *apiv1.Contact) bool { return r.FirstText == "it is me" })
		})
		// Nothing but the invite's prekey protects what she wrote until she is answered,
		// and so long she is told that this is so.
		if c := carol.Contact("alice"); c.State != "pending" {
			t.Errorf("before an answer the new session is %s", c.State)
		}
		for _, r := range requests(t, alice) {
			if r.FirstText == "it is me" {
				if _, err := alice.ApproveRequest(ctx, &apiv1.ApproveRequestRequest{Id: r.Id}); err != nil {
					t.Fatal(err)
				}
			}
		}
		carol.UntilEstablished("alice")
		for _, u := range []*nodetest.User{dave, carol} {
			for range 2 {
				alice.UntilDelivered(alice.Say(u.Name, "are you there?")...)
				u.UntilDelivered(u.Say("alice", "yes")...)
			}
			if c := u.Contact("alice"); c.PqAgeTurns > seen.PqAgeTurns+2 || c.PqAgeDays != 0 {
				t.Errorf("%s's session is %d turns behind, bob's was %d", u.Name, c.PqAgeTurns, seen.PqAgeTurns)
			}
		}
		alice.UntilDelivered(alice.Say("bob", "still here")...)
		agree(t, alice, bob, before+1)
	})
}

// TestBlock: somebody blocked gets nothing of us and learns nothing; what they
// write does not arrive, nor later, when they are unblocked, is anything lost
// that they went on offering.
func TestBlock(t *testing.T) {
	lasting(t)
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		block := func(blocked bool) {
			if _, err := alice.SetBlocked(context.Background(), &apiv1.SetBlockedRequest{Contact: "bob", Blocked: blocked}); err != nil {
				t.Fatal(err)
			}
		}
		block(true)
		if c := alice.Contact("bob"); c.State != "blocked" {
			t.Errorf("bob is %s", c.State)
		}
		_, err := alice.Send(context.Background(), &apiv1.SendRequest{Conversation: "bob", Texts: []string{"no"}})
		wantCode(t, err, node.CodeRefused)
		time.Sleep(time.Minute)
		wire := w.record()
		ids := bob.Say("alice", "are you angry?")
		time.Sleep(8 * time.Hour)
		if n := len(wire.of(alice.IP, bob.IP)); n != 0 {
			t.Errorf("%d envelopes left for somebody who is blocked", n)
		}
		if got := bob.State(ids[0]); got != "queued" && got != "sent" {
			t.Errorf("bob learnt that the text is %s", got)
		}
		if n := len(alice.Messages("bob")); n != before {
			t.Errorf("alice sees %d messages", n)
		}
		block(false)
		bob.UntilDelivered(ids...)
		alice.UntilDelivered(alice.Say("bob", "not any more")...)
		agree(t, alice, bob, before+2)
	})
}

// TestBlockedRequest: a request can be blocked, and answers no more.
func TestBlockedRequest(t *testing.T) {
	lasting(t)
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		link := reusable(alice)
		bob.Accept(link, "alice")
		bob.Say("alice", "let me in")
		r := untilRequests(t, alice, 1)[0]
		if _, err := alice.SetBlocked(context.Background(), &apiv1.SetBlockedRequest{Contact: r.Id, Blocked: true}); err != nil {
			t.Fatal(err)
		}
		_, err := alice.ApproveRequest(context.Background(), &apiv1.ApproveRequestRequest{Id: r.Id})
		wantCode(t, err, node.CodeRefused)
		bob.Restart()
		bob.Say("alice", "I said: let me in")
		time.Sleep(2 * time.Hour)
		if all := requests(t, alice); len(all) != 0 {
			t.Errorf("%d requests wait", len(all))
		}
		if n := len(alice.Messages(r.Id)); n != 1 {
			t.Errorf("%d messages of somebody who is blocked were kept", n-1)
		}
	})
}

// TestP14_StrangersHearNothingOfUs opens streams to a user who has contacts and
// invites, and to one who has none, under names that nobody gave out: both refuse
// alike.
func TestP14_StrangersHearNothingOfUs(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, _ := w.pair()
		nobody := w.user("nobody")
		var answers [2][]byte
		for i, u := range []*nodetest.User{alice, nobody} {
			answers[i] = w.probe(t, u)
		}
		if len(answers[0]) == 0 || !bytes.Equal(answers[0], answers[1]) {
			t.Errorf("one answers %q, the other %q", answers[0], answers[1])
		}
	})
}
