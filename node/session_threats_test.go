package node_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/message"
	"github.com/kith-im/kith/protocol/stream"
)

// TestB01_B05_CopiedDevice is the node's part of both rows: an old copy of a
// data directory is put back, or a thief starts it. The contact's side raises an
// alarm, shows nothing of the copy and stops sending until its user decides.
func TestB01_B05_CopiedDevice(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		copied := alice.Clone()
		for range 3 {
			alice.UntilDelivered(alice.Say("bob", "the right one")...)
			bob.UntilDelivered(bob.Say("alice", "yes")...)
		}
		alice.Stop()
		shown := len(bob.Messages("alice"))
		old := w.userWith("alice", nodetest.Options{Home: copied})
		old.Say("bob", "an old state speaks")
		bob.Until("an alarm", func() bool { return bob.Contact("alice").State == "key_changed" })
		if c := bob.Contact("alice"); c.Alarm == "" || c.Verified {
			t.Errorf("the contact is %v", c)
		}
		send := func() error {
			_, err := bob.Send(context.Background(), &apiv1.SendRequest{Conversation: "alice", Texts: []string{"who are you?"}})
			return err
		}
		wantCode(t, send(), node.CodeKeyUntrusted)
		bob.Restart()
		wantCode(t, send(), node.CodeKeyUntrusted)
		if n := len(bob.Messages("alice")); n != shown {
			t.Errorf("%d messages of the copy are shown", n-shown)
		}
		if _, err := bob.SetVerified(context.Background(), &apiv1.SetVerifiedRequest{Contact: "alice", Verified: true}); err != nil {
			t.Fatal(err)
		}
		if err := send(); err != nil {
			t.Errorf("after the user verified: %v", err)
		}
	})
}

// TestB01_Contradictions: two messages in one place, or one that follows another
// than its author's last, are a sign of a copied device. So is a place that no
// honest history reaches. The conversation is paused, once.
func TestB01_Contradictions(t *testing.T) {
	text := func(seq, depth uint64, prev message.ID) *message.Message {
		return &message.Message{Seq: seq, Prev: prev, Depth: depth, Time: 1, Content: &message.Text{Body: "no"}}
	}
	for name, second := range map[string]func(first message.ID) *message.Message{
		"the same place":     func(message.ID) *message.Message { return text(1, 2, message.ID{}) },
		"another chain":      func(message.ID) *message.Message { return text(2, 2, message.ID{1}) },
		"before the first":   func(first message.ID) *message.Message { return text(2, 1, first) },
		"a far later place":  func(message.ID) *message.Message { return text(1<<40, 2, message.ID{1}) },
		"far below the rest": func(first message.ID) *message.Message { return text(2, 1<<40, first) },
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, 1, func(t *testing.T, w *world) {
				alice := w.user("alice")
				link := oneTime(alice, "")
				s := newStranger(t, alice, link)
				door := w.knock(t, alice, link)
				door.send(t, s.introduction(t)...)
				door.send(t, s.text(t, "yes"))
				first := s.prev
				if c := alice.Contact("stranger"); c.Alarm != "" {
					t.Fatalf("the first message alarms: %s", c.Alarm)
				}
				door.send(t, s.seal(t, second(first)))
				if c := alice.Contact("stranger"); c.State != "key_changed" || c.Alarm == "" {
					t.Errorf("the contact is %s", c.State)
				}
				_, err := alice.Send(ctx, &apiv1.SendRequest{Conversation: "stranger", Texts: []string{"x"}})
				wantCode(t, err, node.CodeKeyUntrusted)
				if all := alice.Messages("stranger"); all[0].Text != "yes" {
					t.Error("the first message is not the first any more")
				}
			})
		})
	}
}

// TestB02_B14_Garbage sends ten thousand envelopes that do not open, under a tag that
// names the session: the session is byte for byte what it was, and nothing is
// said. TestB14: each kind of failure looks the same to the sender.
func TestB02_B14_Garbage(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		wire := w.record()
		alice.UntilDelivered(alice.Say("bob", "now you have a tag")...)
		seen := wire.of(alice.IP, bob.IP)
		tag := seen[0][:16]
		time.Sleep(time.Minute)
		session, events := sessions(t, bob, "alice"), bob.LastEvent()
		alice.Stop() // so that whatever bob says is said to the line
		kinds := map[string]func() []byte{
			"random under a known tag":    func() []byte { return append(bytes.Clone(tag), noise(1024-16)...) },
			"random under an unknown tag": func() []byte { return noise(2048) },
			"altered":                     func() []byte { e := bytes.Clone(seen[0]); e[len(e)-1] ^= 1; return e },
			"seen before":                 func() []byte { return seen[0] },
			"cut to another size":         func() []byte { return append(bytes.Clone(seen[0]), make([]byte, len(seen[0]))...) },
		}
		for name, make := range kinds {
			door := w.dial(t, bob, pairKey(t, bob, "alice"))
			garbage := [][]byte{}
			for range 2000 {
				garbage = append(garbage, make())
			}
			door.send(t, garbage...)
			time.Sleep(time.Minute)
			if heard := door.hangUp(); len(heard) != 0 {
				t.Errorf("%s: %d envelopes came back", name, len(heard))
			}
			now := sessions(t, bob, "alice")
			if len(now) != 1 || !bytes.Equal(now[0].ID, session[0].ID) || !bytes.Equal(now[0].State, session[0].State) {
				t.Errorf("%s: the session changed", name)
			}
			if last := bob.LastEvent(); last != events {
				t.Errorf("%s: %d events", name, last-events)
			}
		}
		alice.Start()
		alice.UntilDelivered(alice.Say("bob", "undisturbed")...)
		agree(t, alice, bob, before+2)
	})
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// tamper changes the envelopes that travel from one machine to another: each is
// replaced by what f returns.
func (w *world) tamper(from, to netip.Addr, f func(envelope []byte) [][]byte) {
	w.Tap(framed(func(a, b netip.Addr, fr stream.Frame) []stream.Frame {
		if fr.Type != stream.TypeEnvelope || a != from || b != to {
			return []stream.Frame{fr}
		}
		var out []stream.Frame
		for _, e := range f(fr.Envelope) {
			out = append(out, stream.Frame{Type: stream.TypeEnvelope, Envelope: e})
		}
		return out
	}))
}

// TestB08_DroppedMessage loses messages on the way. The next one that arrives
// shows the gap, and what is missing is asked for and comes; if what was lost
// comes too, it is not shown again.
func TestB08_DroppedMessage(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		time.Sleep(time.Minute)
		var mu sync.Mutex
		n := 0
		var lost [][]byte
		w.tamper(alice.IP, bob.IP, func(e []byte) [][]byte {
			mu.Lock()
			defer mu.Unlock()
			if n++; n == 2 || n == 3 {
				lost = append(lost, bytes.Clone(e))
				return nil
			}
			return [][]byte{e}
		})
		for i := range 4 {
			alice.Say("bob", fmt.Sprint("text ", i))
			time.Sleep(time.Second)
		}
		bob.UntilWithin(time.Minute, "all four", func() bool { return len(bob.Messages("alice")) == before+4 })
		gap := uint32(0)
		for _, e := range bob.Events(0) {
			if e.Type == "message" && e.Text == "text 3" {
				gap = e.Missing
			}
		}
		if gap != 2 {
			t.Errorf("the message after two lost ones shows %d missing", gap)
		}
		agree(t, alice, bob, before+4)
		for _, m := range alice.Messages("bob") {
			if m.FromMe {
				alice.UntilWithin(3*time.Hour, "it is delivered", func() bool { return alice.State(m.Id) == "delivered" })
			}
		}
		// What was lost turns up after all: the same messages a second time.
		door := w.dial(t, bob, pairKey(t, bob, "alice"))
		door.send(t, lost...)
		door.hangUp()
		agree(t, alice, bob, before+4)
		if c := bob.Contact("alice"); c.State != "established" {
			t.Errorf("a message that came twice passed for a sign of a copied device: %s", c.Alarm)
		}
	})
}

// TestP4_CommitThenAcknowledge looks into the store at the moment when an
// acknowledgement leaves: what it acknowledges is there.
func TestP4_CommitThenAcknowledge(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		link := oneTime(alice, "")
		s := newStranger(t, alice, link)
		door := w.knock(t, alice, link)
		door.send(t, s.introduction(t)...)
		stored := func() (n int64) {
			if err := alice.Store.View(ctx, func(tx *store.Tx) error {
				all, err := tx.Contacts()
				for _, c := range all {
					n, err = tx.CountMessages(c.ID)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
			return n
		}
		acks := make(chan struct{}, 100)
		w.Tap(framed(func(from, _ netip.Addr, f stream.Frame) []stream.Frame {
			if f.Type == stream.TypeAck && from == alice.IP {
				if n := stored(); n+2 < int64(f.Count) {
					t.Errorf("%d envelopes are acknowledged, and %d messages are stored", f.Count, n)
				}
				acks <- struct{}{}
			}
			return []stream.Frame{f}
		}))
		for range 20 {
			door.send(t, s.text(t, "text"))
		}
		if len(acks) == 0 {
			t.Error("no acknowledgement was looked at")
		}
	})
}

// TestB09_Reordered delivers six messages in many orders: they are shown in the
// order of their author.
func TestB09_Reordered(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		rng := mathrand.New(mathrand.NewPCG(5, 5))
		for range 12 {
			link := alice.Invite(&apiv1.CreateInviteRequest{Name: "s"})
			s := newStranger(t, alice, link)
			door := w.knock(t, alice, link)
			door.send(t, s.introduction(t)...)
			texts := make([][]byte, 6)
			for i := range texts {
				texts[i] = s.text(t, fmt.Sprint(i))
			}
			order := rng.Perm(6)
			for _, i := range order {
				door.send(t, texts[i])
			}
			door.hangUp()
			all := contacts(t, alice)
			got := ""
			for _, m := range alice.Messages(all[len(all)-1].Id) {
				got += m.Text
			}
			if got != "012345" {
				t.Fatalf("arrived as %v, shown as %s", order, got)
			}
		}
	})
}

// TestB09_Transplanted: a message that names another conversation is not shown
// in either.
func TestB09_Transplanted(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		link := oneTime(alice, "")
		s := newStranger(t, alice, link)
		door := w.knock(t, alice, link)
		door.send(t, s.introduction(t)...)
		s.victim[0] ^= 1 // the conversation of two other people
		door.send(t, s.text(t, "pizza"))
		if n := len(alice.Messages("stranger")) + len(alice.Messages("bob")); n != before {
			t.Errorf("%d messages are shown", n-before)
		}
		agree(t, alice, bob, before)
	})
}

// TestB10_Repeated delivers each envelope zero to five times: each message is
// shown once.
func TestB10_Repeated(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		var mu sync.Mutex
		rng := mathrand.New(mathrand.NewPCG(9, 9))
		w.tamper(alice.IP, bob.IP, func(e []byte) [][]byte {
			mu.Lock()
			defer mu.Unlock()
			return slices.Repeat([][]byte{e}, rng.IntN(6))
		})
		const count = 40
		for i := range count {
			alice.Say("bob", fmt.Sprint("text ", i))
			time.Sleep(5 * time.Second)
		}
		w.Tap(nil)
		alice.Say("bob", "and the last")
		bob.UntilWithin(3*time.Hour, "all of them", func() bool { return len(bob.Messages("alice")) == before+count+1 })
		agree(t, alice, bob, before+count+1)
	})
}

// TestB11_Replayed replays a whole conversation to its recipient, after months
// and a restart: nothing opens, nothing is shown, nothing is said.
func TestB11_Replayed(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		c := newClock(0)
		alice := w.userWith("alice", nodetest.Options{Now: c.now})
		bob := w.userWith("bob", nodetest.Options{Now: c.now})
		wire := w.record()
		nodetest.Befriend(alice, bob)
		for range 5 {
			alice.UntilDelivered(alice.Say("bob", "there")...)
			bob.UntilDelivered(bob.Say("alice", "and back")...)
		}
		c.move(70 * 24 * time.Hour)
		alice.Stop()
		time.Sleep(2 * time.Hour) // bob tidies
		bob.Restart()
		session, events := sessions(t, bob, "alice"), bob.LastEvent()
		for range 3 {
			door := w.dialAt(t, bob, pairKey(t, bob, "alice"), c.now())
			door.send(t, wire.of(alice.IP, bob.IP)...)
			if heard := door.hangUp(); len(heard) != 0 {
				t.Errorf("%d envelopes came back", len(heard))
			}
		}
		if now := sessions(t, bob, "alice"); len(now) != 1 || !bytes.Equal(now[0].State, session[0].State) {
			t.Error("the session changed")
		}
		if last := bob.LastEvent(); last != events {
			t.Errorf("%d events", last-events)
		}
		if n := len(bob.Messages("alice")); n != 10 {
			t.Errorf("%d messages are shown", n)
		}
	})
}

// TestB12_PostQuantumAge: while two people talk, post-quantum keys are mixed in
// again and again, and the API says when that was.
func TestB12_PostQuantumAge(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		oldest, mixed := int32(0), false
		last := int32(0)
		for range 30 {
			alice.UntilDelivered(alice.Say("bob", "there")...)
			bob.UntilDelivered(bob.Say("alice", "and back")...)
			age := alice.Contact("bob").PqAgeTurns
			oldest, mixed = max(oldest, age), mixed || age < last
			last = age
		}
		if !mixed || oldest > 16 {
			t.Errorf("post-quantum keys were up to %d turns old, mixed in again: %v", oldest, mixed)
		}
	})
}

// TestD01_ReceiptsForMessagesAlone: what devices say to each other, and messages
// about nothing, cause no receipt and no other answer.
func TestD01_ReceiptsForMessagesAlone(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		link := oneTime(alice, "")
		s := newStranger(t, alice, link)
		door := w.knock(t, alice, link)
		door.send(t, s.introduction(t)...)
		time.Sleep(time.Minute)
		var id message.ID
		copy(id[:], noise(32))
		for _, probe := range []message.Content{
			&message.Typing{Active: true},
			&message.Profile{Name: "another"},
			&message.DeviceList{Signed: s.list},
			&message.Delivered{IDs: []message.ID{id}},
			&message.Read{IDs: []message.ID{id}},
			&message.Gone{Seq: 77, ID: id, Reason: message.Cancelled},
			&message.Resend{Ranges: []message.Range{{First: 1, Last: 1 << 40}}},
		} {
			for range 20 {
				door.send(t, s.seal(t, &message.Message{Time: 1, Content: probe}))
			}
		}
		time.Sleep(time.Hour)
		silent := len(door.hangUp())
		if silent != 2 { // alice's own device list and profile
			t.Errorf("%d envelopes came back to probes", silent-2)
		}
		door = w.dial(t, alice, pairKey(t, alice, "stranger"))
		door.send(t, s.text(t, "something to see"))
		time.Sleep(time.Minute)
		if heard := door.hangUp(); len(heard) != 1 {
			t.Errorf("%d envelopes came back to a text", len(heard))
		}
	})
}

// TestD07_Sizes looks at everything that travels between two people, from the
// invite on, in a conversation with texts of every size: no envelope has a size
// that is not in the list, and short ones of all kinds look alike.
func TestD07_Sizes(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		wire := w.record()
		alice, bob := w.pair()
		for _, size := range []int{1, 10, 500, 900, 1000, 5000, 20000, protocol.MaxText} {
			alice.UntilDelivered(alice.Say("bob", strings.Repeat("x", size))...)
			bob.UntilDelivered(bob.Say("alice", strings.Repeat("y", size))...)
		}
		skip := len(wire.of(alice.IP, bob.IP))
		for range 10 {
			alice.UntilDelivered(alice.Say("bob", "short")...)
			bob.UntilDelivered(bob.Say("alice", "a little longer")...)
		}
		sizes := make(map[int]int)
		for _, e := range append(wire.of(alice.IP, bob.IP), wire.of(bob.IP, alice.IP)...) {
			sizes[len(e)]++
			if !bucket(len(e)) {
				t.Errorf("an envelope of %d bytes", len(e))
			}
		}
		if len(sizes) < 5 {
			t.Errorf("only %v travelled", sizes)
		}
		for _, e := range wire.of(alice.IP, bob.IP)[skip:] {
			if len(e) > 2*protocol.MinEnvelope {
				t.Errorf("a short text, or a receipt, takes %d bytes", len(e))
			}
		}
	})
}

// TestE13_NoRecordsOnDisk: of the records that a user looks up nothing is kept
// but in the store's own, enciphered, files.
func TestE13_NoRecordsOnDisk(t *testing.T) {
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, _ := w.talking()
		known := []string{"lock", "store/key.0", "store/key.1", "store/kith.db", "store/kith.db-wal", "store/kith.db-shm", "store/reserve"}
		if err := filepath.WalkDir(alice.Home, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(alice.Home, path)
			if err == nil && !slices.Contains(known, filepath.ToSlash(rel)) {
				t.Errorf("there is a file %s", rel)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestI08_TwoDaemons: a home that is in use does not open, and whoever uses it
// goes on undisturbed.
func TestI08_TwoDaemons(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		_, err := store.Open(store.Options{Dir: alice.Home})
		var inUse *store.InUseError
		if !errors.As(err, &inUse) {
			t.Errorf("opening a home twice: %v", err)
		}
		alice.UntilDelivered(alice.Say("bob", "undisturbed")...)
		agree(t, alice, bob, before+1)
	})
}
