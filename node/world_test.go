package node_test

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/kith-im/kith/node/nodetest"
)

// world is a simulated network with some community nodes and the users made in it.
type world struct {
	*nodetest.Network
	t     *testing.T
	ways  []*nodetest.Community
	users int
}

// simulate runs f in a bubble with a world of its own, beside other tests: most
// of a test's real time is spent waiting for the disk.
func simulate(t *testing.T, communities int, f func(*testing.T, *world)) {
	t.Helper()
	t.Parallel()
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		n.SetLatency(10 * time.Millisecond)
		f(t, &world{Network: n, t: t, ways: nodetest.NewCommunities(t, n, communities)})
	})
}

// simulateMail is simulate with community nodes that keep mail.
func simulateMail(t *testing.T, communities int, f func(*testing.T, *world)) {
	t.Helper()
	t.Parallel()
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		n.SetLatency(10 * time.Millisecond)
		f(t, &world{Network: n, t: t, ways: nodetest.NewMailCommunities(t, n, communities)})
	})
}

// machine returns the number of a machine that nobody uses.
func (w *world) machine() int {
	w.users++
	return 1000 + w.users
}

func (w *world) user(name string) *nodetest.User {
	w.t.Helper()
	return w.userWith(name, nodetest.Options{})
}

func (w *world) userWith(name string, o nodetest.Options) *nodetest.User {
	w.t.Helper()
	o.Machine = w.machine()
	if o.Ways == nil {
		o.Ways = w.ways[:min(3, len(w.ways))]
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nodetest.NewUser(w.t, w.Network, name, o)
}

// pair makes two contacts, alice and bob.
func (w *world) pair() (alice, bob *nodetest.User) {
	w.t.Helper()
	alice, bob = w.user("alice"), w.user("bob")
	nodetest.Befriend(alice, bob)
	return alice, bob
}

// talking makes two contacts who have heard each other, so that the handshake is
// over.
func (w *world) talking() (alice, bob *nodetest.User) {
	w.t.Helper()
	alice, bob = w.pair()
	for range 2 {
		alice.UntilDelivered(alice.Say("bob", "are you there?")...)
		bob.UntilDelivered(bob.Say("alice", "yes")...)
	}
	return alice, bob
}

// before is how many messages talking leaves behind.
const before = 4

// numbered returns count different texts.
func numbered(prefix string, count int) []string {
	texts := make([]string, count)
	for i := range texts {
		texts[i] = fmt.Sprintf("%s %d", prefix, i)
	}
	return texts
}

// agree checks that two contacts see one conversation: the same messages, each
// once, in the same order, every author's in the order of sending, without a
// gap; and that these are the count that were sent.
func agree(t *testing.T, a, b *nodetest.User, count int) {
	t.Helper()
	as, bs := a.Messages(b.Name), b.Messages(a.Name)
	if len(as) != count || len(bs) != count {
		t.Fatalf("%s sees %d messages with %s, who sees %d; want %d", a.Name, len(as), b.Name, len(bs), count)
	}
	seen := make(map[string]bool)
	seq := make(map[string]uint64)
	for i, m := range as {
		o := bs[i]
		if m.Id != o.Id || m.Text != o.Text || m.From != o.From || m.FromMe == o.FromMe || m.Seq != o.Seq {
			t.Fatalf("message %d: %s sees %q of %s, %s sees %q of %s", i, a.Name, m.Text, m.From, b.Name, o.Text, o.From)
		}
		if seen[m.Id] {
			t.Fatalf("message %d is shown twice", i)
		}
		seen[m.Id] = true
		if seq[m.From]++; m.Seq != seq[m.From] {
			t.Fatalf("message %d: number %d of %s stands in place %d", i, m.Seq, m.From, seq[m.From])
		}
		if m.MissingBefore != 0 || o.MissingBefore != 0 {
			t.Fatalf("message %d shows a gap", i)
		}
	}
	for _, u := range []*nodetest.User{a, b} {
		announced := make(map[string]int)
		for _, e := range u.Events(0) {
			if e.Type == "message" && seen[e.ID] {
				announced[e.ID]++
			}
		}
		if len(announced) != count || slices.ContainsFunc(slices.Collect(maps.Values(announced)), func(k int) bool { return k != 1 }) {
			t.Errorf("%s was told of %d messages of %d, or of one twice", u.Name, len(announced), count)
		}
	}
}

// lasting says that a test takes hours of simulated time. The race detector
// takes minutes for these, and finds in the first hour what there is to find.
func lasting(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("hours of simulated time: not under the race detector")
	}
}
