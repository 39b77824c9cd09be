package node_test

import (
	"slices"
	"testing"

	"github.com/kith-im/kith/node/nodetest"
)

// TestTwoPeopleTalk is the whole product once: a link, and texts both ways.
func TestTwoPeopleTalk(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		ways := nodetest.NewCommunities(t, n, 1)
		alice := nodetest.NewUser(t, n, "alice", nodetest.Options{Machine: 100, Ways: ways})
		bob := nodetest.NewUser(t, n, "bob", nodetest.Options{Machine: 101, Ways: ways})
		nodetest.Befriend(alice, bob)
		alice.UntilDelivered(alice.Say("bob", "hello")...)
		bob.UntilDelivered(bob.Say("alice", "hello yourself")...)
		want := []string{"alice: hello", "bob: hello yourself"}
		for _, u := range []struct {
			*nodetest.User
			with string
		}{{alice, "bob"}, {bob, "alice"}} {
			if got := u.Texts(u.with); !slices.Equal(got, want) {
				t.Errorf("%s sees %q", u.Name, got)
			}
		}
	})
}
