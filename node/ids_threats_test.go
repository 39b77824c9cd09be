package node_test

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/rendezvous"
)

// TestD05_PeerIDsLeadNowhere: a stranger asks every community node where the
// owners of all peer ids are that a record or an invite ever named, and of all
// that any node was ever connected to: people's hosts for conversations, which
// have relays, those for look-ups and visits to mailboxes, of this run and of
// earlier ones. No answer names a person's device or address.
func TestD05_PeerIDsLeadNowhere(t *testing.T) {
	simulateMail(t, 5, func(t *testing.T, w *world) {
		met := make(chan peer.ID, 1<<16)
		for _, c := range w.ways {
			c.Host.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, conn network.Conn) { met <- conn.RemotePeer() }})
		}
		ids := make(map[peer.ID]bool)
		named := func(u, contact *nodetest.User) {
			u.Until("the record of "+contact.Name+" names their device", func() bool {
				named := idsInRecord(t, u, contact)
				for _, id := range named {
					ids[id] = true
				}
				return slices.Contains(named, contact.Contacts.ID())
			})
		}

		w.SetNAT(nodetest.IP(1002), nodetest.SymmetricNAT)
		alice, bob := w.talking()
		carol := w.user("carol")
		link := reusable(alice)
		carol.Accept(link, "alice")
		carol.Say("alice", "let me in")
		untilRequests(t, alice, 1)
		users := []*nodetest.User{alice, bob, carol}
		named(alice, bob)
		named(bob, alice)
		strangers := w.askForAll(t, ids, met, users)

		// Under new names, and after hiding, it is no different; nor for the old ones.
		if _, err := bob.HideAddress(ctx, &apiv1.HideAddressRequest{Contact: "alice", Hidden: true}); err != nil {
			t.Fatal(err)
		}
		bob.Stop()
		alice.Restart()
		alice.Say("bob", "while you were away") // to his mailboxes
		time.Sleep(time.Hour)
		bob.Start()
		bob.UntilTexts("alice", before/2+1)
		named(alice, bob)
		named(bob, alice)
		if later := w.askForAll(t, ids, met, users); later <= strangers+3 {
			t.Errorf("%d ids of people were seen, and %d after restarts and visits", strangers, later)
		}
		for _, hint := range parseLink(t, link).Hints {
			a, err := ma.NewMultiaddrBytes(hint)
			if err != nil {
				t.Fatal(err)
			}
			if _, id := peer.SplitAddr(a); ids[id] {
				t.Error("an invite names a person's device")
			}
		}
	})
}

// askForAll adds who was met to ids, asks every community node for each, and for
// every other node, and returns how many ids are no community node's.
func (w *world) askForAll(t *testing.T, ids map[peer.ID]bool, met chan peer.ID, users []*nodetest.User) int {
	t.Helper()
	for len(met) > 0 {
		ids[<-met] = true
	}
	for _, u := range users {
		ids[u.Contacts.ID()], ids[u.Errands.ID()] = true, true
	}
	for _, c := range w.ways {
		delete(ids, c.Info.ID)
	}
	stranger := w.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(w.machine()))
	defer func() {
		stranger.Close()
		synctest.Wait()
		for len(met) > 0 {
			<-met
		}
	}()
	for i, c := range w.ways {
		if err := stranger.Connect(ctx, c.Info); err != nil {
			t.Fatal(err)
		}
		other := w.ways[(i+1)%len(w.ways)]
		if answer := findNode(t, stranger, c.Info.ID, other.Info.ID); !bytes.Contains(answer, []byte(other.Info.ID)) || !bytes.Contains(answer, bytesOf(other.IP)) {
			t.Errorf("node %d does not say where another is", i)
		}
		for id := range ids {
			answer := findNode(t, stranger, c.Info.ID, id)
			if bytes.Contains(answer, []byte(id)) {
				t.Errorf("node %d knows where %s is", i, id)
			}
			for _, u := range users {
				if bytes.Contains(answer, bytesOf(u.IP)) {
					t.Errorf("node %d names the address of %s", i, u.Name)
				}
			}
		}
	}
	return len(ids)
}

// bytesOf is how an answer would say that somebody is at ip.
func bytesOf(ip netip.Addr) []byte { return ma.StringCast("/ip4/" + ip.String()).Bytes() }

// findNode asks a community node for a peer and returns the answer as it came.
func findNode(t *testing.T, from *transport.Host, to, wanted peer.ID) []byte {
	t.Helper()
	s, err := from.NewStream(ctx, to, libp2p.ID("/lan/kad/1.0.0"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const findNode, typeTag, keyTag = 4, 1 << 3, 2<<3 | 2 // docs/spec/discovery.md, section 3
	request := append([]byte{typeTag, findNode, keyTag, byte(len(wanted))}, wanted...)
	if _, err := s.Write(append([]byte{byte(len(request))}, request...)); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// idsInRecord returns the peer ids that a contact's record names to u as its own.
func idsInRecord(t *testing.T, u, contact *nodetest.User) (ids []peer.ID) {
	t.Helper()
	d := devices(t, u, contact.Name)[0]
	points := rendezvous.Derive(protocol.SharedFromPair(pairs(t, u, contact.Name)[0]).Rendezvous, [32]byte(d.Hash), rendezvous.Day(time.Now()))
	found, err := u.Dir.Find(context.Background(), points[:])
	if err != nil {
		return nil // not announced yet
	}
	for _, b := range found.Body.Addresses {
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		_, id := peer.SplitAddr(a)
		ids = append(ids, id)
	}
	return ids
}
