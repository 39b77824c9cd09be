package node_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
)

var ctx = context.Background()

func trace(t *testing.T, u *nodetest.User, id string) *apiv1.TraceResponse {
	t.Helper()
	out, err := u.Trace(ctx, &apiv1.TraceRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLedger follows a message by its events and its trace: queued, sent,
// delivered, in this order and never back, and through a restart.
func TestLedger(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		bob.Stop()
		id := alice.Say("bob", "wait for it")[0]
		time.Sleep(10 * time.Minute)
		out := trace(t, alice, id)
		if out.Message.State != "queued" || len(out.Devices) != 1 || len(out.Devices[0].Attempts) == 0 || out.Devices[0].NextMs == 0 {
			t.Errorf("the trace of a message for somebody away is %v", out)
		}
		for _, a := range out.Devices[0].Attempts {
			if a.Result == "" || a.Result == "taken" || a.Road != "direct" || a.TimeMs == 0 {
				t.Errorf("an attempt is %v", a)
			}
		}
		alice.Restart()
		bob.Start()
		alice.UntilDelivered(id)
		out = trace(t, alice, id[:12])
		last := out.Devices[0].Attempts[len(out.Devices[0].Attempts)-1]
		if out.Devices[0].State != "delivered" || out.Devices[0].DeliveredMs == 0 || last.Result != "taken" || out.Devices[0].NextMs != 0 {
			t.Errorf("the trace of a delivered message is %v", out)
		}
		var states []string
		for _, e := range alice.Events(0) {
			if e.ID == id {
				states = append(states, e.State)
			}
		}
		if !slices.Equal(states, []string{"queued", "sent", "delivered"}) && !slices.Equal(states, []string{"queued", "delivered"}) {
			t.Errorf("the events say %v", states)
		}
	})
}

// TestCancel takes back a message that has not left. Its place stays, its text
// goes, the recipient never sees it and sees no gap either.
func TestCancel(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		bob.Stop()
		time.Sleep(time.Second)
		ids := alice.Say("bob", "first", "regretted", "third")
		cancel := func(id string) error {
			_, err := alice.Cancel(ctx, &apiv1.CancelRequest{Id: id})
			return err
		}
		out, err := alice.Cancel(ctx, &apiv1.CancelRequest{Id: ids[1]})
		if err != nil {
			t.Fatal(err)
		}
		if out.Message.State != "cancelled" || out.Message.Text != "" {
			t.Errorf("the message is %v", out.Message)
		}
		if err := cancel(ids[1]); err != nil {
			t.Errorf("cancelling once more: %v", err)
		}
		wantCode(t, cancel("no such id"), node.CodeNotFound)
		bob.Start()
		alice.UntilDelivered(ids[0], ids[2])
		wantCode(t, cancel(ids[0]), node.CodeRefused)
		bob.Until("the gap is explained", func() bool {
			for _, m := range bob.Messages("alice") {
				if m.MissingBefore != 0 {
					return false
				}
			}
			return true
		})
		for _, m := range bob.Messages("alice") {
			if m.Text == "regretted" {
				t.Error("the recipient sees what was cancelled")
			}
			if m.FromMe {
				continue
			}
			wantCode(t, func() error { _, err := bob.Cancel(ctx, &apiv1.CancelRequest{Id: m.Id}); return err }(), node.CodeRefused)
		}
		alice.UntilDelivered(alice.Say("bob", "fourth")...)
		texts := strings.Join(bob.Texts("alice"), ",")
		if !strings.HasSuffix(texts, "first,alice: ,alice: third,alice: fourth") && !strings.HasSuffix(texts, "first,alice: third,alice: fourth") {
			t.Errorf("bob sees %s", texts)
		}
	})
}

// TestCancelFails: a message whose cancelling came to nothing leaves after all, and
// as many as fit a window do not keep what was written later from leaving.
func TestCancelFails(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		bob.Stop()
		ids := alice.Say("bob", numbered("m", 70)...)
		alice.Restart()
		// What tells of a cancelled message can not be sealed for now.
		states := make(map[string][]byte)
		set := func(state func(store.SessionRow) []byte) {
			t.Helper()
			if err := alice.Store.Update(ctx, func(tx *store.Tx) error {
				devices, err := tx.Devices(0)
				if err != nil {
					return err
				}
				for _, d := range devices {
					sessions, err := tx.Sessions(d.Hash)
					if err != nil {
						return err
					}
					for _, s := range sessions {
						if err := tx.SaveSession(s.ID, state(s)); err != nil {
							return err
						}
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		set(func(s store.SessionRow) []byte { states[string(s.ID)] = s.State; return []byte("damaged") })
		for _, id := range ids[:66] {
			if _, err := alice.Cancel(ctx, &apiv1.CancelRequest{Id: id}); err == nil {
				t.Fatal("cancelled, and nobody could be told of it")
			}
		}
		set(func(s store.SessionRow) []byte { return states[string(s.ID)] })
		bob.Start()
		alice.UntilDelivered(ids...)
	})
}

// TestExpiry: a message that could not be delivered in time ends as expired, in
// plain sight; one with a time of its own ends then. Nothing ends early.
func TestExpiry(t *testing.T) {
	lasting(t)
	simulate(t, 1, func(t *testing.T, w *world) {
		c := newClock(0)
		alice := w.userWith("alice", nodetest.Options{Now: c.now})
		bob := w.user("bob")
		nodetest.Befriend(alice, bob)
		bob.Stop()
		long := alice.Say("bob", "for a month")[0]
		out, err := alice.Send(ctx, &apiv1.SendRequest{Conversation: "bob", Texts: []string{"for two hours"}, ExpireS: 7200})
		if err != nil {
			t.Fatal(err)
		}
		short := out.Messages[0].Id
		time.Sleep(100 * time.Minute)
		if s := alice.State(short); s != "queued" {
			t.Errorf("after 100 minutes the short one is %s", s)
		}
		alice.UntilWithin(2*time.Hour, "it is expired", func() bool { return alice.State(short) == "expired" })
		if m := trace(t, alice, short).Message; m.Reason == "" {
			t.Error("it expired without a reason")
		}
		c.move(10 * year)
		alice.Restart() // a clock alone, however wrong, ends nothing
		time.Sleep(time.Minute)
		if s := alice.State(long); s != "queued" {
			t.Errorf("after a jump of ten years the long one is %s", s)
		}
		for day := range 30 {
			if s := alice.State(long); day < 28 && s != "queued" {
				t.Fatalf("on day %d the long one is %s", day, s)
			}
			c.away(alice, 1)
		}
		if s := alice.State(long); s != "expired" {
			t.Errorf("after a month the long one is %s", s)
		}
		if d := trace(t, alice, long).Devices[0]; d.NextMs != 0 {
			t.Error("an expired message is to be offered again")
		}
	})
}

// TestIdempotencyKey: the same key gives the same messages, once, also after a
// restart, and for another conversation an error.
func TestIdempotencyKey(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		carol := w.user("carol")
		nodetest.Befriend(alice, carol)
		send := func(to string) ([]string, error) {
			out, err := alice.Send(ctx, &apiv1.SendRequest{Conversation: to, Texts: []string{"one", "two"}, IdempotencyKey: "k"})
			if err != nil {
				return nil, err
			}
			return []string{out.Messages[0].Id, out.Messages[1].Id}, nil
		}
		first, err := send("bob")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			again, err := send("bob")
			if err != nil || !slices.Equal(again, first) {
				t.Errorf("the same key gave %v, %v", again, err)
			}
			alice.Restart()
		}
		_, err = send("carol")
		wantCode(t, err, node.CodeUsage)
		alice.UntilDelivered(first...)
		agree(t, alice, bob, 2)
	})
}

// TestCursor watches with a cursor: what was not acknowledged comes again, also
// after a restart and a crash, and nothing is ever skipped.
func TestCursor(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		list := func(cursor string) (ids []uint64) {
			t.Helper()
			out, err := alice.ListEvents(ctx, &apiv1.ListEventsRequest{Cursor: cursor, From: "start", Limit: 5})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range out.Events {
				ids = append(ids, e.Id)
			}
			return ids
		}
		ack := func(cursor string, id uint64) error {
			_, err := alice.AckEvents(ctx, &apiv1.AckEventsRequest{Cursor: cursor, Id: id})
			return err
		}
		wantCode(t, ack("never used", 1), node.CodeNotFound)
		first := list("bot")
		if again := list("bot"); !slices.Equal(again, first) {
			t.Errorf("unacknowledged %v became %v", first, again)
		}
		alice.UntilDelivered(alice.Say("bob", numbered("text", 20)...)...)
		bob.UntilDelivered(bob.Say("alice", numbered("text", 20)...)...)
		var all []uint64
		for round := 0; ; round++ {
			page := list("bot")
			if len(page) == 0 {
				break
			}
			all = append(all, page...)
			if err := ack("bot", page[len(page)-1]); err != nil {
				t.Fatal(err)
			}
			switch round {
			case 2:
				alice.Restart()
			case 4:
				alice.Crash()
				alice.Start()
			}
		}
		for i, id := range all {
			if id != all[0]+uint64(i) {
				t.Fatalf("event %d follows %d", id, all[i-1])
			}
		}
		wantCode(t, ack("bot", alice.LastEvent()+1), node.CodeUsage)
		if err := ack("bot", 1); err != nil { // back: ignored
			t.Error(err)
		}
		if again := list("bot"); len(again) != 0 {
			t.Errorf("a cursor moved back to %v", again)
		}
	})
}

// TestWatch streams events while they happen and acknowledges them by itself.
func TestWatch(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		seen := make(map[uint64]bool)
		watch := func(text string) {
			ctx, stop := context.WithCancel(ctx)
			defer stop()
			err := alice.WatchEvents(ctx, &apiv1.WatchEventsRequest{Cursor: "tui", From: "now", AutoAck: true}, func(e *apiv1.Event) error {
				seen[e.Id] = true
				if strings.Contains(e.Data, text) {
					stop()
				}
				return nil
			})
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		first := alice.LastEvent() + 1
		time.AfterFunc(time.Second, func() { bob.Say("alice", "stop one") })
		watch("stop one")
		bob.UntilDelivered(bob.Say("alice", "between")...)
		time.AfterFunc(time.Second, func() { bob.Say("alice", "stop two") })
		watch("stop two")
		for id := first; id <= alice.LastEvent(); id++ {
			if !seen[id] {
				t.Errorf("event %d was skipped", id)
			}
		}
	})
}

// TestNames: ids and prefixes of them name a contact, a name that fits several is
// an error, two contacts never have one name, and a chosen name stays.
func TestNames(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		one, two := w.user("Sam"), w.user("sam")
		for _, u := range []*nodetest.User{one, two} {
			link := alice.Invite(&apiv1.CreateInviteRequest{})
			u.Accept(link, "alice")
			u.UntilEstablished("alice")
			alice.Until("another contact is established", func() bool {
				all := contacts(t, alice)
				return all[len(all)-1].State == "established" && strings.EqualFold(all[len(all)-1].Name[:3], "sam")
			})
		}
		all := contacts(t, alice)
		if all[0].Name != "Sam" || all[1].Name != "sam-2" {
			t.Fatalf("they are called %q and %q", all[0].Name, all[1].Name)
		}
		for _, word := range []string{"Sam", "sam", "SAM", all[0].Id, all[0].Id[:8]} {
			if out, err := alice.Send(ctx, &apiv1.SendRequest{Conversation: word, Texts: []string{"x"}}); err != nil || out.Messages[0].Conversation != all[0].Id {
				t.Errorf("%q names %v, %v", word, out, err)
			}
		}
		rename := func(who, name string) error {
			_, err := alice.RenameContact(ctx, &apiv1.RenameContactRequest{Contact: who, Name: name})
			return err
		}
		wantCode(t, rename("Sam", "SAM-2"), node.CodeRefused)
		wantCode(t, rename("Sam", " \u200b\n"), node.CodeUsage)
		wantCode(t, rename("nobody", "x"), node.CodeNotFound)
		if err := rename("Sam", "Samuel\x1b[31m"); err != nil {
			t.Error(err)
		}
		one.Restart()
		if c := alice.Contact(all[0].Id); c.Name != "Samuel[31m" {
			t.Errorf("the new name is %q", c.Name)
		}
		// Prefixes are of ids, not of names; no id has a bracket in it.
		_, err := alice.Send(ctx, &apiv1.SendRequest{Conversation: "Samuel[", Texts: []string{"x"}})
		wantCode(t, err, node.CodeNotFound)
		_, err = alice.ListMessages(ctx, &apiv1.ListMessagesRequest{Conversation: ""})
		wantCode(t, err, node.CodeNotFound)
	})
}

// TestSendErrors: every refusal is a sentence with a next step, and nothing of a
// refused request is sent.
func TestSendErrors(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		carol := w.user("carol")
		nodetest.Befriend(alice, carol)
		elsewhere := alice.Say("carol", "elsewhere")[0]
		send := func(r *apiv1.SendRequest) error {
			r.Conversation = "bob"
			_, err := alice.Send(ctx, r)
			return err
		}
		wantCode(t, send(&apiv1.SendRequest{Texts: []string{"fine", strings.Repeat("x", protocol.MaxText+1)}}), node.CodeUsage)
		wantCode(t, send(&apiv1.SendRequest{Texts: []string{"fine", "\xff"}}), node.CodeUsage)
		wantCode(t, send(&apiv1.SendRequest{Texts: []string{"fine", ""}}), node.CodeUsage)
		wantCode(t, send(&apiv1.SendRequest{Texts: []string{"fine"}, ReplyTo: "00000000"}), node.CodeNotFound)
		wantCode(t, send(&apiv1.SendRequest{Texts: []string{"fine"}, ReplyTo: elsewhere}), node.CodeNotFound)
		_, err := alice.Trace(ctx, &apiv1.TraceRequest{Id: "zzzz"})
		wantCode(t, err, node.CodeNotFound)
		_, err = alice.Ping(ctx, &apiv1.PingRequest{Contact: "nobody"})
		wantCode(t, err, node.CodeNotFound)
		carol.Stop()
		_, err = alice.Ping(ctx, &apiv1.PingRequest{Contact: "carol"})
		wantCode(t, err, node.CodeNetwork)
		if out, err := alice.Ping(ctx, &apiv1.PingRequest{Contact: "bob"}); err != nil || out.Ms < 20 || out.Ms > 25 {
			t.Errorf("ping over 10 ms each way: %v, %v", out, err)
		}
		alice.UntilDelivered(alice.Say("bob", "the only one")...)
		agree(t, alice, bob, before+1)
	})
}

// TestConversations lists what there is to read, each with its last message.
func TestConversations(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		carol := w.user("carol")
		nodetest.Befriend(alice, carol)
		alice.UntilDelivered(alice.Say("bob", "one", "two")...)
		bob.UntilDelivered(bob.Say("alice", "three")...)
		out, err := alice.ListConversations(ctx, &apiv1.ListConversationsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Conversations) != 2 {
			t.Fatalf("%d conversations", len(out.Conversations))
		}
		for _, c := range out.Conversations {
			switch c.Name {
			case "bob":
				if c.Messages != 3 || c.Last == nil || c.Last.Text != "three" || c.Contact.State != "established" {
					t.Errorf("the one with bob is %v", c)
				}
			case "carol":
				if c.Messages != 0 || c.Last != nil {
					t.Errorf("the one with carol is %v", c)
				}
			}
		}
	})
}

// TestPages reads a conversation in pages, from both ends.
func TestPages(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, _ := w.pair()
		ids := alice.Say("bob", numbered("text", 25)...)
		list := func(r *apiv1.ListMessagesRequest) (page []string, more bool) {
			t.Helper()
			r.Conversation = "bob"
			out, err := alice.ListMessages(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range out.Messages {
				page = append(page, m.Id)
			}
			return page, out.More
		}
		for _, c := range []struct {
			name string
			req  *apiv1.ListMessagesRequest
			want []string
			more bool
		}{
			{"last", &apiv1.ListMessagesRequest{Last: 10}, ids[15:], true},
			{"before", &apiv1.ListMessagesRequest{Last: 10, Before: ids[15]}, ids[5:15], true},
			{"the first page", &apiv1.ListMessagesRequest{Last: 10, Before: ids[5]}, ids[:5], false},
			{"since", &apiv1.ListMessagesRequest{Last: 10, Since: ids[4]}, ids[5:15], true},
			{"since, to the end", &apiv1.ListMessagesRequest{Last: 10, Since: ids[14]}, ids[15:], false},
			{"all", &apiv1.ListMessagesRequest{}, ids, false},
		} {
			if page, more := list(c.req); !slices.Equal(page, c.want) || more != c.more {
				t.Errorf("%s: %d messages, more %v", c.name, len(page), more)
			}
		}
	})
}

// TestCancelUnsure: what was offered, and may have arrived, cannot be cancelled,
// whether or not an answer came.
func TestCancelUnsure(t *testing.T) {
	cancelled := func(t *testing.T, alice, bob *nodetest.User, id string) {
		t.Helper()
		if _, err := alice.Cancel(ctx, &apiv1.CancelRequest{Id: id}); err == nil {
			t.Error("it was cancelled")
		}
		alice.UntilDelivered(id)
		if texts := bob.Texts("alice"); texts[len(texts)-1] != "alice: for good" {
			t.Errorf("bob has %q", texts)
		}
	}
	t.Run("on a conversation", func(t *testing.T) {
		simulate(t, 3, func(t *testing.T, w *world) {
			alice, bob := w.talking()
			w.Cut(bob.IP, alice.IP)
			for _, c := range w.ways {
				w.Cut(c.IP, alice.IP)
			}
			id := alice.Say("bob", "for good")[0]
			time.Sleep(2 * time.Minute)
			w.Heal()
			cancelled(t, alice, bob, id)
		})
	})
	t.Run("at a mailbox that does not count", func(t *testing.T) {
		simulateMail(t, 3, func(t *testing.T, w *world) {
			alice, bob := w.visited()
			bob.Stop()
			for _, c := range w.ways {
				if err := alice.Store.Update(ctx, func(tx *store.Tx) error {
					return tx.SaveKeeper(store.KeeperRow{Node: []byte(c.Info.ID), Doubts: 50, Struck: 1 << 40})
				}); err != nil {
					t.Fatal(err)
				}
			}
			id := alice.Say("bob", "for good")[0]
			time.Sleep(3 * time.Minute)
			if state := alice.State(id); state != "queued" {
				t.Errorf("it is %s", state)
			}
			bob.Start()
			cancelled(t, alice, bob, id)
		})
	})
}
