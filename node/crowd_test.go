package node_test

import (
	"testing"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
)

// TestManyInvites announces for as many people as one user may know.
func TestManyInvites(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice := w.user("alice")
		for range 60 {
			oneTime(alice, "")
		}
		announced(alice)
	})
}

// TestCommunityNodeRestarts has the only community node forget everything: users
// announce themselves anew, and find each other.
func TestCommunityNodeRestarts(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		link := oneTime(alice, "bob")
		announced(alice)
		w.ways[0].Kill()
		time.Sleep(time.Minute)
		w.ways[0].Start()
		bob.Accept(link, "alice")
		bob.UntilEstablished("alice")
	})
}

// TestA24_ExpiredInvite: an invite's prekey opens answers for seven days after
// its expiry, and then it is erased.
func TestA24_ExpiredInvite(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		c := newClock(0)
		alice := w.userWith("alice", nodetest.Options{Now: c.now})
		link := alice.Invite(&apiv1.CreateInviteRequest{ExpiresS: 3600})
		id := bundleOf(t, alice, link).PrekeyID
		c.away(alice, 9)
		if hasPrekey(t, alice, id) {
			t.Error("the prekey of an invite that expired nine days ago is there")
		}
	})
}
