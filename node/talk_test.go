package node_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/protocol"
)

// TestTwoPeopleTalk is the whole product once: a link, and texts both ways.
func TestTwoPeopleTalk(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		alice.UntilDelivered(alice.Say("bob", "hello")...)
		bob.UntilDelivered(bob.Say("alice", "hello yourself")...)
		want := []string{"alice: hello", "bob: hello yourself"}
		if got := alice.Texts("bob"); !slices.Equal(got, want) {
			t.Errorf("alice sees %q", got)
		}
		agree(t, alice, bob, 2)
	})
}

// TestThreePeopleTalk has one person talk to two, with every node restarted on
// the way.
func TestThreePeopleTalk(t *testing.T) {
	simulate(t, 2, func(t *testing.T, w *world) {
		alice, bob, carol := w.user("alice"), w.user("bob"), w.user("carol")
		nodetest.Befriend(alice, bob)
		nodetest.Befriend(carol, alice)
		for round := range 3 {
			text := fmt.Sprint("round ", round)
			ids := append(alice.Say("bob", text), alice.Say("carol", text)...)
			bob.UntilDelivered(bob.Say("alice", text)...)
			carol.UntilDelivered(carol.Say("alice", text)...)
			alice.UntilDelivered(ids...)
			[]*nodetest.User{bob, alice, carol}[round].Restart()
		}
		agree(t, alice, bob, 6)
		agree(t, alice, carol, 6)
	})
}

// TestTwentyPeople stands twenty people in a ring; everybody writes to both
// neighbours at the same time.
func TestTwentyPeople(t *testing.T) {
	if testing.Short() {
		t.Skip("twenty daemons")
	}
	const people, each = 20, 3
	simulate(t, 4, func(t *testing.T, w *world) {
		var ring []*nodetest.User
		for i := range people {
			ring = append(ring, w.user(fmt.Sprint("person", i)))
		}
		for i, u := range ring {
			nodetest.Befriend(u, ring[(i+1)%people])
		}
		sent := make([][]string, people)
		var all sync.WaitGroup
		for i, u := range ring {
			all.Go(func() {
				for k := range each {
					for _, to := range []*nodetest.User{ring[(i+1)%people], ring[(i+people-1)%people]} {
						sent[i] = append(sent[i], u.Say(to.Name, fmt.Sprint("text ", k))...)
					}
				}
			})
		}
		all.Wait()
		for i, u := range ring {
			u.UntilDelivered(sent[i]...)
		}
		for i, u := range ring {
			agree(t, u, ring[(i+1)%people], 2*each)
		}
	})
}

// TestThousandTexts sends a thousand texts in batches, and the longest there is.
func TestThousandTexts(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		var ids []string
		for batch := range slices.Chunk(numbered("text", 1000), 250) {
			ids = append(ids, alice.Say("bob", batch...)...)
		}
		ids = append(ids, alice.Say("bob", strings.Repeat("x", protocol.MaxText))...)
		bob.UntilTexts("alice", len(ids))
		alice.UntilDelivered(ids[len(ids)-1])
		agree(t, alice, bob, len(ids))
		for i, m := range bob.Messages("alice")[:1000] {
			if m.Text != fmt.Sprint("text ", i) {
				t.Fatalf("place %d holds %q", i, m.Text)
			}
		}
		alice.UntilDelivered(ids...)
	})
}

// TestB07_ConcurrentSend sends to one contact from 16 goroutines.
func TestB07_ConcurrentSend(t *testing.T) {
	const senders, each = 16, 20
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		var ids [senders][]string
		var all sync.WaitGroup
		for i := range senders {
			all.Go(func() {
				for k := range each {
					ids[i] = append(ids[i], alice.Say("bob", fmt.Sprintf("%d/%d", i, k))...)
				}
			})
		}
		all.Wait()
		for i := range ids {
			alice.UntilDelivered(ids[i]...)
		}
		agree(t, alice, bob, before+senders*each)
		neverMissed(t, alice)
		neverMissed(t, bob)
	})
}

// TestOrderUnderPartition has both write at once while the network between them
// comes and goes: in the end both see the same order, and what somebody had read
// when they wrote stands before what they wrote.
func TestOrderUnderPartition(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		rng := rand.New(rand.NewPCG(7, 7))
		read := make(map[string][]string) // by what was written: what its author had read
		sent := 0
		for range 12 {
			if rng.IntN(2) == 0 {
				w.Partition([]netip.Addr{alice.IP}, []netip.Addr{bob.IP})
			} else {
				w.Heal()
			}
			for _, u := range []*nodetest.User{alice, bob} {
				with := map[string]string{"alice": "bob", "bob": "alice"}[u.Name]
				var known []string
				for _, m := range u.Messages(with) {
					known = append(known, m.Id)
				}
				for _, id := range u.Say(with, numbered(u.Name, 1+rng.IntN(3))...) {
					read[id] = slices.Clone(known)
					known = append(known, id)
					sent++
				}
			}
			time.Sleep(time.Duration(rng.IntN(20)) * time.Second)
		}
		w.Heal()
		alice.UntilTexts("bob", sent)
		bob.UntilTexts("alice", sent)
		agree(t, alice, bob, sent)
		place := make(map[string]int)
		for i, m := range alice.Messages("bob") {
			place[m.Id] = i
		}
		for id, before := range read {
			for _, earlier := range before {
				if place[earlier] > place[id] {
					t.Fatal("an answer stands before what it answers")
				}
			}
		}
	})
}

// TestFS07_PartitionAndHeal cuts six users and three community nodes in two,
// another way every 20 seconds, for five minutes. A minute after the network
// healed everything has arrived.
func TestFS07_PartitionAndHeal(t *testing.T) {
	if testing.Short() {
		t.Skip("nine daemons for five minutes")
	}
	const people = 6
	simulate(t, 3, func(t *testing.T, w *world) {
		var us []*nodetest.User
		for i := range people {
			us = append(us, w.user(fmt.Sprint("person", i)))
		}
		type talk struct{ a, b int }
		var talks []talk
		for i := range people {
			nodetest.Befriend(us[i], us[(i+1)%people])
			talks = append(talks, talk{i, (i + 1) % people})
		}
		rng := rand.New(rand.NewPCG(3, 3))
		count := make(map[talk]int)
		ids := make(map[int][]string)
		for range 15 {
			var sides [2][]netip.Addr
			for _, u := range us {
				k := rng.IntN(2)
				sides[k] = append(sides[k], u.IP)
			}
			for _, c := range w.ways {
				k := rng.IntN(2)
				sides[k] = append(sides[k], c.IP)
			}
			w.Partition(sides[0], sides[1])
			for _, p := range talks {
				ids[p.a] = append(ids[p.a], us[p.a].Say(us[p.b].Name, "there")...)
				ids[p.b] = append(ids[p.b], us[p.b].Say(us[p.a].Name, "and back")...)
				count[p] += 2
			}
			time.Sleep(20 * time.Second)
		}
		w.Heal()
		healed := time.Now()
		for i, u := range us {
			u.UntilDelivered(ids[i]...)
		}
		if took := time.Since(healed); took > time.Minute {
			t.Errorf("everything was delivered %v after the network healed", took)
		}
		for _, p := range talks {
			agree(t, us[p.a], us[p.b], count[p])
		}
	})
}

// TestB06_Crash ends a sender and a recipient as kill -9 does, again and again,
// while they talk: what was queued arrives, once, and every envelope
// has a message key of its own.
func TestB06_Crash(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		sent := before
		for i := range 6 {
			alice.Say("bob", numbered(fmt.Sprint("out ", i), 20)...)
			bob.Say("alice", numbered(fmt.Sprint("in ", i), 20)...)
			sent += 40
			time.Sleep(time.Duration(i*7) * time.Millisecond)
			u := []*nodetest.User{alice, bob}[i%2]
			u.Crash()
			u.Start()
		}
		alice.UntilTexts("bob", sent)
		bob.UntilTexts("alice", sent)
		agree(t, alice, bob, sent)
		neverMissed(t, alice)
		neverMissed(t, bob)
	})
}

// TestReply shows that a reply names its message on both sides.
func TestReply(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.pair()
		id := alice.Say("bob", "question")[0]
		bob.UntilTexts("alice", 1)
		if _, err := bob.Send(context.Background(), &apiv1.SendRequest{Conversation: "alice", Texts: []string{"answer"}, ReplyTo: id}); err != nil {
			t.Fatal(err)
		}
		alice.UntilTexts("bob", 2)
		if m := alice.Messages("bob")[1]; m.ReplyTo != id {
			t.Errorf("the answer replies to %q", m.ReplyTo)
		}
	})
}
