package node_test

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/protocol/lan"
)

// local makes a user on machine i who knows no community node and is on l.
func local(t *testing.T, n *nodetest.Network, l *nodetest.LAN, i int, name string) *nodetest.User {
	t.Helper()
	return nodetest.NewUser(t, n, name, nodetest.Options{Machine: i, Link: l.Open(i)})
}

func switchLAN(t *testing.T, on bool, users ...*nodetest.User) {
	t.Helper()
	for _, u := range users {
		if _, err := u.SetLan(t.Context(), &apiv1.SetLanRequest{On: on}); err != nil {
			t.Fatal(err)
		}
	}
}

func lanOf(t *testing.T, u *nodetest.User) *apiv1.Lan {
	t.Helper()
	s, err := u.Status(t.Context(), &apiv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Lan
}

// TestLANAlone: two people with nobody else accept an invite, talk, and find each
// other again after a restart, within seconds of switching the local network on.
func TestLANAlone(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		l := new(nodetest.LAN)
		a, b := local(t, n, l, 0, "alice"), local(t, n, l, 1, "bob")
		b.Accept(a.Invite(&apiv1.CreateInviteRequest{Name: "bob"}), "alice")
		time.Sleep(10 * time.Minute) // nothing leads there
		switchLAN(t, true, a, b)
		b.UntilWithin(5*time.Second, "alice is a contact", func() bool { return b.Contact("alice").State == "established" })
		a.UntilEstablished("bob")
		ids := append(a.Say("bob", "here"), b.Say("alice", "and here")...)
		a.UntilDelivered(ids[0])
		b.UntilDelivered(ids[1])
		ping, err := a.Ping(t.Context(), &apiv1.PingRequest{Contact: "bob"})
		if err != nil || ping.Road != "lan" {
			t.Errorf("ping: %v, %v", ping, err)
		}
		trace, err := a.Trace(t.Context(), &apiv1.TraceRequest{Id: ids[0]})
		if err != nil || len(trace.Devices) != 1 || trace.Devices[0].Attempts[0].Road != "lan" {
			t.Errorf("trace: %v, %v", trace, err)
		}

		b.Stop()
		a.Say("bob", "while you were away")
		time.Sleep(time.Hour)
		b.Start() // it is still on
		b.UntilWithin(5*time.Second, "the text is there", func() bool { return len(b.Messages("alice")) == 3 })

		switchLAN(t, false, a, b)
		if s := lanOf(t, a); s.On || s.Devices != 0 {
			t.Errorf("switched off it is %v", s)
		}
		var switched []string
		for _, e := range a.Events(0) {
			if e.Type == "lan" {
				switched = append(switched, e.Type)
			}
		}
		if len(switched) != 2 {
			t.Errorf("%d events say that it was switched, want 2", len(switched))
		}
	})
}

// TestD16_SilentUntilSwitchedOn: nothing is said on a local network before the
// user asks for it, nor after they want it no more; and what is said then is
// packets of one size in which nothing comes back, however many contacts there are.
func TestD16_SilentUntilSwitchedOn(t *testing.T) {
	nodetest.Bubble(t, 2, func(t *testing.T, n *nodetest.Network) {
		var mu sync.Mutex
		said := make(map[netip.Addr]int)
		seen := make(map[string]bool)
		spoken := func(u *nodetest.User) int {
			mu.Lock()
			defer mu.Unlock()
			return said[u.IP]
		}
		l := &nodetest.LAN{Heard: func(from netip.Addr, packet []byte) {
			mu.Lock()
			defer mu.Unlock()
			said[from]++
			if len(packet) != lan.PacketSize {
				t.Errorf("a packet of %d bytes", len(packet))
			}
			for i := 0; i+12 <= len(packet); i += 12 {
				if s := string(packet[i : i+12]); seen[s] {
					t.Error("twelve bytes came back")
				} else {
					seen[s] = true
				}
			}
		}}
		nodes := nodetest.NewCommunities(t, n, 3)
		known := nodetest.NewUser(t, n, "alice", nodetest.Options{Machine: 10, Ways: nodes, Link: l.Open(10)})
		nodetest.Befriend(known, nodetest.NewUser(t, n, "bob", nodetest.Options{Machine: 11, Ways: nodes, Link: l.Open(11)}))
		loner := local(t, n, l, 12, "carol")
		time.Sleep(time.Hour)
		if n := spoken(known) + spoken(loner); n > 0 {
			t.Fatalf("unasked, they spoke %d times", n)
		}
		switchLAN(t, true, known, loner)
		time.Sleep(time.Hour)
		a, c := spoken(known), spoken(loner)
		if a == 0 || c == 0 || a > 3*c || c > 3*a {
			t.Errorf("one with a contact spoke %d times, one without %d times", a, c)
		}
		switchLAN(t, false, known, loner)
		before := spoken(known)
		time.Sleep(time.Hour)
		if spoken(known) != before {
			t.Error("it spoke after it was switched off")
		}
	})
}

// TestLANStrangers: people who share no secret hear nothing of each other, and a
// contact who was blocked hears nothing any more (docs/spec/lan.md, section 2).
func TestLANStrangers(t *testing.T) {
	nodetest.Bubble(t, 3, func(t *testing.T, n *nodetest.Network) {
		l := new(nodetest.LAN)
		a, b, c := local(t, n, l, 0, "alice"), local(t, n, l, 1, "bob"), local(t, n, l, 2, "carol")
		switchLAN(t, true, a, b, c)
		nodetest.Befriend(a, b)
		time.Sleep(time.Minute)
		if d := lanOf(t, c).Devices; d != 0 {
			t.Errorf("a stranger hears %d devices", d)
		}
		if d := lanOf(t, b).Devices; d != 1 {
			t.Errorf("a contact hears %d devices", d)
		}
		if _, err := a.SetBlocked(t.Context(), &apiv1.SetBlockedRequest{Contact: "bob", Blocked: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if d := lanOf(t, b).Devices; d != 0 {
			t.Errorf("who was blocked hears %d devices", d)
		}
	})
}

// TestLANManyContacts: who has more contacts than a packet has slots reaches all
// of them, and whoever appears is found within seconds.
func TestLANManyContacts(t *testing.T) {
	if testing.Short() {
		t.Skip("some 30 nodes")
	}
	nodetest.Bubble(t, 4, func(t *testing.T, n *nodetest.Network) {
		l := new(nodetest.LAN)
		a := local(t, n, l, 0, "alice")
		switchLAN(t, true, a)
		const friends = lan.Slots + 10
		var all []*nodetest.User
		for i := range friends {
			u := local(t, n, l, 1+i, "friend"+strings.Repeat("x", i))
			switchLAN(t, true, u)
			nodetest.Befriend(a, u)
			all = append(all, u)
		}
		time.Sleep(10 * time.Minute)
		if d := lanOf(t, a).Devices; d != friends {
			t.Errorf("%d devices are heard, want %d", d, friends)
		}
		a.Restart()
		began := time.Now()
		for _, u := range all {
			id := a.Say(u.Name, "hello again")
			a.UntilDelivered(id...)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("all were reached only after %v", took)
		}
	})
}

// TestLANReplay: a packet that somebody sends again, from its own address or from
// another, makes nobody call anybody there.
func TestLANReplay(t *testing.T) {
	nodetest.Bubble(t, 5, func(t *testing.T, n *nodetest.Network) {
		var mu sync.Mutex
		var packets [][]byte
		l := &nodetest.LAN{Heard: func(from netip.Addr, packet []byte) {
			mu.Lock()
			defer mu.Unlock()
			if from == nodetest.IP(0) {
				packets = append(packets, append([]byte(nil), packet...))
			}
		}}
		a, b := local(t, n, l, 0, "alice"), local(t, n, l, 1, "bob")
		switchLAN(t, true, a, b)
		nodetest.Befriend(a, b)
		switchLAN(t, false, a)
		time.Sleep(5 * time.Minute)
		if d := lanOf(t, b).Devices; d != 0 {
			t.Fatalf("%d devices are heard, want none", d)
		}
		mu.Lock()
		said := slices.Clone(packets)
		mu.Unlock()
		for _, p := range said {
			l.Say(nodetest.IP(66), p) // somebody else's address
			time.Sleep(time.Second)
		}
		if d := lanOf(t, b).Devices; d != 0 {
			t.Error("a packet from elsewhere was believed")
		}
		time.Sleep(5 * time.Hour)
		for _, p := range said {
			l.Say(a.IP, p)
			time.Sleep(time.Second)
		}
		if d := lanOf(t, b).Devices; d != 0 {
			t.Error("a packet of another epoch was believed")
		}
	})
}
