package node_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/invite"
	"github.com/kith-im/kith/protocol/rendezvous"
)

// TestBridgeRemoved: a bridge that the user removed is not dialled any more, one
// that stays is.
func TestBridgeRemoved(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		const way = "/ip4/20.9.9.9/tcp/443/tls/sni/cats.example/http-path/AAECAwQFBgcICQoLDA0ODw/p2p/"
		ids := []string{"12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN", "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"}
		known := func(id string) int {
			t.Helper()
			p, err := peer.Decode(id)
			if err != nil {
				t.Fatal(err)
			}
			return len(alice.Contacts.Peerstore().Addrs(p))
		}
		for _, id := range ids {
			if _, err := alice.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: way + id}); err != nil {
				t.Fatal(err)
			}
		}
		if known(ids[0]) != 1 || known(ids[1]) != 1 {
			t.Fatal("a bridge that was added can not be dialled")
		}
		if _, err := alice.RemoveBridge(ctx, &apiv1.RemoveBridgeRequest{Id: ids[0]}); err != nil {
			t.Fatal(err)
		}
		if known(ids[0]) != 0 {
			t.Error("the bridge that was removed is still dialled")
		}
		if known(ids[1]) != 1 {
			t.Error("the other one is not dialled any more")
		}
		if _, err := alice.RemoveBridge(ctx, &apiv1.RemoveBridgeRequest{Id: ids[1]}); err != nil || known(ids[1]) != 0 {
			t.Errorf("the last one is dialled at %d addresses: %v", known(ids[1]), err)
		}
	})
}

// TestBridgePaths: two paths of one bridge are two ways with an id each, and one of
// them is removed alone; what fits both removes neither.
func TestBridgePaths(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		const site, id = "/ip4/20.9.9.9/tcp/443/tls/sni/cats.example/http-path/", "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
		var ids []string
		for _, path := range []string{"AAECAwQFBgcICQoLDA0ODw", "AAECAwQFBgcICQoLDA0OEA"} {
			out, err := alice.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: site + path + "/p2p/" + id})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, out.Bridge.Id)
		}
		if ids[0] == ids[1] {
			t.Errorf("both ways are called %s", ids[0])
		}
		left := func() (ids []string) {
			t.Helper()
			out, err := alice.ListBridges(ctx, &apiv1.ListBridgesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range out.Bridges {
				ids = append(ids, b.Id)
			}
			return ids
		}
		for _, test := range []struct {
			id, want string // want is in the error
			left     int
		}{
			{"", "no such bridge", 2},
			{"nobody", "no such bridge", 2},
			{id, "2 addresses", 2},
			{strings.ToUpper(ids[0]), "", 1},
			{ids[0], "no such bridge", 1},
			{id, "", 0},
		} {
			_, err := alice.RemoveBridge(ctx, &apiv1.RemoveBridgeRequest{Id: test.id})
			if got := fmt.Sprint(err); test.want == "" && err != nil || !strings.Contains(got, test.want) {
				t.Errorf("to remove %q: %v, want %q", test.id, err, test.want)
			}
			if got := left(); len(got) != test.left || test.left == 1 && got[0] != ids[1] {
				t.Errorf("after %q is removed, %q are left", test.id, got)
			}
		}
	})
}

// TestBridgeMovesBoxes: when a bridge gets another path, or loses one, boxes that could
// not be reached are looked for at once: one may be at that bridge.
func TestBridgeMovesBoxes(t *testing.T) {
	another := strings.Replace(aBridge, "ODw/", "OEA/", 1)
	for _, test := range []struct {
		name   string
		change func(*nodetest.User) error
	}{
		{"a path more", func(u *nodetest.User) error {
			_, err := u.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: another})
			return err
		}},
		{"a path less", func(u *nodetest.User) error {
			_, err := u.RemoveBridge(ctx, &apiv1.RemoveBridgeRequest{Id: aBridge})
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			simulateMail(t, 3, func(t *testing.T, w *world) {
				behave(nodetest.Behaviour{}, w.ways...)
				alice := w.user("alice")
				// The nodes are no bridges here, and may be dialled.
				if _, err := alice.SetMode(ctx, &apiv1.SetModeRequest{Setting: "open"}); err != nil {
					t.Fatal(err)
				}
				if _, err := alice.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: aBridge}); err != nil {
					t.Fatal(err)
				}
				housed(alice, 3)
				for _, c := range w.ways {
					c.Stop()
				}
				reached := func() bool { return mailboxes(alice).Healthy == 3 }
				alice.Until("no box is reached", func() bool { return mailboxes(alice).Healthy == 0 })
				time.Sleep(6 * time.Hour) // and they are tried seldom
				for _, c := range w.ways {
					c.Start()
				}
				if time.Sleep(time.Second); reached() {
					t.Fatal("they are reached without it")
				}
				if err := test.change(alice); err != nil {
					t.Fatal(err)
				}
				alice.UntilWithin(5*time.Second, "every box is reached", reached)
			})
		})
	}
}

// TestModeAfterContact: who is given a bridge goes over to censored mode, although a
// contact had told of the same one before, which is no reason to.
func TestModeAfterContact(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, _ := w.talking()
		if err := alice.Store.Update(ctx, func(tx *store.Tx) error {
			contacts, err := tx.Contacts()
			if err != nil {
				return err
			}
			return tx.SaveBridge(store.BridgeRow{Address: aBridge, Source: store.BridgeFromContact, Contact: contacts[0].ID, Added: 1})
		}); err != nil {
			t.Fatal(err)
		}
		out, err := alice.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: aBridge})
		if err != nil {
			t.Fatal(err)
		}
		if out.Mode.Mode != "censored" {
			t.Errorf("the mode is %s", out.Mode.Mode)
		}
	})
}

// TestModeBeforeTheRest: an invite that names a bridge names community nodes besides.
// A newcomer in an open network goes over to censored mode before it knows of these,
// and none of them ever hears from it (threats D17); an invite that comes to nothing
// leaves the mode as it was.
func TestModeBeforeTheRest(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice := w.user("alice")
		nobody := []*nodetest.Community{}
		bob, carol := w.userWith("bob", nodetest.Options{Ways: nobody}), w.userWith("carol", nodetest.Options{Ways: nobody})
		plain := alice.Invite(&apiv1.CreateInviteRequest{})
		if _, err := alice.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: aBridge}); err != nil {
			t.Fatal(err)
		}
		forBob, forCarol := alice.Invite(&apiv1.CreateInviteRequest{}), alice.Invite(&apiv1.CreateInviteRequest{})
		alice.Stop()
		is := func(u *nodetest.User, want string) {
			t.Helper()
			out, err := u.GetMode(ctx, &apiv1.GetModeRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if out.Mode.Mode != want || u.Contacts.Mode().String() != want || u.Errands.Mode().String() != want {
				t.Errorf("%s is in mode %s and its hosts in %s and %s, want %s", u.Name, out.Mode.Mode, u.Contacts.Mode(), u.Errands.Mode(), want)
			}
		}
		bob.Accept(forBob, "alice")
		is(bob, "censored")
		time.Sleep(time.Hour)
		for _, c := range w.ways {
			if n := w.Dials(bob.IP, c.IP); n > 0 {
				t.Errorf("%d dials to a community node that the invite names beside the bridge", n)
			}
		}
		carol.Accept(plain, "alice")
		if _, err := carol.SetBlocked(ctx, &apiv1.SetBlockedRequest{Contact: "alice", Blocked: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := carol.AcceptInvite(ctx, &apiv1.AcceptInviteRequest{Link: forCarol}); err == nil {
			t.Error("the invite of somebody who is blocked was accepted")
		}
		is(carol, "open")
	})
}

// TestBridgeStaysSecret: a bridge that the user keeps from others stays so when the
// next start names it as a way in again.
func TestBridgeStaysSecret(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		if _, err := alice.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: aBridge, Secret: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := node.Prepare(ctx, alice.Store, "", []ma.Multiaddr{ma.StringCast(aBridge)}, 1); err != nil {
			t.Fatal(err)
		}
		out, err := alice.ListBridges(ctx, &apiv1.ListBridgesRequest{})
		if err != nil || len(out.Bridges) != 1 {
			t.Fatalf("bridges: %v, %v", out, err)
		}
		if out.Bridges[0].Shared {
			t.Error("it is told to contacts, and named in invites")
		}
	})
}

// TestModeStays: who was given a bridge is in censored mode on every network, and
// after a restart, until the user says otherwise; that stays as well, and doctor
// tells how (docs/decisions/0023).
func TestModeStays(t *testing.T) {
	simulate(t, 1, func(t *testing.T, w *world) {
		alice := w.user("alice")
		is := func(want string) {
			t.Helper()
			out, err := alice.GetMode(ctx, &apiv1.GetModeRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if out.Mode.Mode != want {
				t.Errorf("the mode is %s, want %s", out.Mode.Mode, want)
			}
		}
		move := func() {
			alice.Stop()
			alice.IP = nodetest.IP(w.machine())
			alice.Start()
			time.Sleep(time.Hour)
		}
		say := func(setting string) {
			t.Helper()
			if _, err := alice.SetMode(ctx, &apiv1.SetModeRequest{Setting: setting}); err != nil {
				t.Fatal(err)
			}
		}
		is("open")
		if _, err := alice.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: aBridge}); err != nil {
			t.Fatal(err)
		}
		is("censored")
		move()
		is("censored")
		doctor, err := alice.Doctor(ctx, &apiv1.DoctorRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(doctor.Checks, func(c *apiv1.Check) bool {
			return c.Name == "mode" && c.Ok && strings.Contains(c.Text, "kith mode open")
		}) {
			t.Errorf("doctor does not say how it ends: %v", doctor.Checks)
		}
		if n := w.Dials(alice.IP, w.ways[0].IP); n > 0 {
			t.Errorf("%d dials to a community node from the new network", n)
		}
		say("open")
		move()
		is("open")
		say("auto")
		is("censored")
	})
}

// TestDoors: who can be dialled waits at a bridge that their invites name, and says so
// in the records of those invites alone, as long as they have the bridge.
func TestDoors(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice := w.user("alice")
		if _, err := alice.SetMode(ctx, &apiv1.SetModeRequest{Setting: "open"}); err != nil {
			t.Fatal(err)
		}
		plain := alice.Invite(&apiv1.CreateInviteRequest{})
		bridge := w.ways[1].Host
		reserved := func(want int64) func() bool {
			return func() bool {
				return bridge.Relaying().Reservations == want && w.ways[0].Host.Relaying().Reservations == 0 && w.ways[2].Host.Relaying().Reservations == 0
			}
		}
		time.Sleep(time.Minute)
		alice.Until("others can dial her", reserved(0))
		if err := alice.Contacts.Connect(ctx, nodetest.AddrInfo(t, bridge)); err != nil {
			t.Fatal(err)
		}
		out, err := alice.AddBridge(ctx, &apiv1.AddBridgeRequest{
			Address: "/ip4/20.9.9.9/tcp/443/tls/sni/cats.example/http-path/AAECAwQFBgcICQoLDA0ODw/p2p/" + bridge.ID().String(),
		})
		if err != nil {
			t.Fatal(err)
		}
		bridged := alice.Invite(&apiv1.CreateInviteRequest{})
		alice.Until("she waits at the bridge, and nowhere else", reserved(1))
		time.Sleep(time.Minute)
		names := func(link string) bool {
			t.Helper()
			parsed, err := invite.Parse(link)
			if err != nil {
				t.Fatal(err)
			}
			points := rendezvous.Derive(parsed.Keys().Rendezvous, parsed.Device, rendezvous.Day(time.Now()))
			found, err := alice.Dir.Find(ctx, points[:])
			if err != nil {
				t.Fatal(err)
			}
			door := ma.StringCast("/p2p/" + bridge.ID().String() + "/p2p-circuit/p2p/" + alice.Contacts.ID().String()).Bytes()
			return slices.ContainsFunc(found.Body.Addresses, func(a []byte) bool { return bytes.Equal(a, door) })
		}
		if !names(bridged) {
			t.Error("the record of an invite that names the bridge does not say that she waits there")
		}
		if names(plain) {
			t.Error("the record of an invite that does not name the bridge does")
		}
		if _, err := alice.RemoveBridge(ctx, &apiv1.RemoveBridgeRequest{Id: out.Bridge.Id}); err != nil {
			t.Fatal(err)
		}
		alice.Until("the bridge is left", reserved(0))
		time.Sleep(time.Minute)
		if names(bridged) {
			t.Error("the record names a bridge that was left")
		}
	})
}
