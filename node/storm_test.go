package node_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/mailbox"
	"github.com/kith-im/kith/protocol/rendezvous"
)

// gone makes a contact of u who has announced an address, or more, on a machine
// where nobody answers.
func (w *world) gone(t *testing.T, u, by *nodetest.User, name string, addresses ...[]byte) {
	t.Helper()
	link := oneTime(u, name)
	s := newStranger(t, u, link)
	door := w.knock(t, u, link)
	door.send(t, append(s.introduction(t), s.text(t, "I was here"))...)
	door.hangUp()
	u.UntilEstablished(name)
	keys := protocol.SharedFromPair(pairs(t, u, name)[0])
	now := time.Now()
	point := rendezvous.Derive(keys.Rendezvous, s.device.Hash(), rendezvous.Day(now))[0]
	record, err := point.Seal(1, now.Add(24*time.Hour), rendezvous.Body{Addresses: addresses})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := by.Dir.Announce(ctx, point, record); err != nil {
		t.Fatal(err)
	}
}

// addressesOn is what a record says that names count ports of machine i.
func addressesOn(t *testing.T, i, count int) (all [][]byte) {
	t.Helper()
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for port := range count {
		all = append(all, ma.StringCast(fmt.Sprintf("/ip4/%s/tcp/%d/p2p/%s", nodetest.IP(i), nodetest.Port+port, id)).Bytes())
	}
	return all
}

// TestF12_ManyAway: a user has something to say to forty contacts, all of whom
// have announced where they are and are away. They are dialled once a second all
// together, after the first few; how many they are makes no difference to that.
func TestF12_ManyAway(t *testing.T) {
	away := 40
	if testing.Short() {
		away = 25
	}
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, by := w.user("alice"), w.user("by")
		const first = 3000
		for i := range away {
			w.gone(t, alice, by, fmt.Sprint("friend", i), addressesOn(t, first+i, 1)...)
		}
		dials := func() (sum int) {
			for i := range away {
				sum += w.Dials(alice.IP, nodetest.IP(first+i))
			}
			return sum
		}
		time.Sleep(time.Minute)
		alice.Restart()
		earlier := dials()
		for i := range away {
			alice.Say(fmt.Sprint("friend", i), "where are you?")
		}
		const atOnce, seconds = 16, 300
		for second := range seconds {
			if made := dials() - earlier; made > atOnce+second {
				t.Fatalf("%d dials in %d s", made, second)
			}
			time.Sleep(time.Second)
		}
		if made := dials() - earlier; made < away {
			t.Errorf("%d contacts were dialled %d times", away, made)
		} else {
			t.Logf("%d contacts were dialled %d times in %d s", away, made, seconds)
		}
	})
}

// TestE10_VictimOfARecord: a contact's record names nothing but ports of somebody
// else's machine, as its own or as those of relays, and machines on loopback and
// local networks. The victim sees at most four dials for each call, and eight in a
// minute, and calls become rare; the others see none.
func TestE10_VictimOfARecord(t *testing.T) {
	const machine = 4000
	victim := nodetest.IP(machine)
	near := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.168.1.1")}
	const nameSize = 2 + 1 + 38 // of "/p2p/" and a peer id
	ports := addressesOn(t, machine, 6)
	name := ports[0][len(ports[0])-nameSize:]
	for _, ip := range near {
		ports = append(ports, slices.Concat(ma.StringCast("/ip4/"+ip.String()+"/tcp/22").Bytes(), name))
	}
	relays := addressesOn(t, machine, 8)
	name = relays[0][len(relays[0])-nameSize:]
	for i := range relays[:4] {
		relay := addressesOn(t, machine, 1+i)[i]
		relays[i] = slices.Concat(relay, ma.StringCast("/p2p-circuit").Bytes(), name)
	}
	for kind, record := range map[string][][]byte{"ports": ports, "relays": relays} {
		t.Run(kind, func(t *testing.T) {
			simulate(t, 3, func(t *testing.T, w *world) {
				alice := w.user("alice")
				w.gone(t, alice, w.user("by"), "mallory", record...)
				alice.Stop()
				earlier := w.Dials(alice.IP, victim)
				dials := func() int { return w.Dials(alice.IP, victim) - earlier }
				alice.Start()
				alice.Say("mallory", "where are you?")
				for end := time.Now().Add(time.Minute); dials() == 0 && time.Now().Before(end); {
					time.Sleep(50 * time.Millisecond)
				}
				time.Sleep(300 * time.Millisecond) // all of one call; the next comes later
				if got := dials(); got < 1 || got > 4 {
					t.Errorf("the victim was dialled %d times, want 1 to 4", got)
				}
				time.Sleep(time.Minute - 350*time.Millisecond)
				if got := dials(); got < 5 || got > 8 {
					t.Errorf("the victim was dialled %d times in the first minute, want 5 to 8", got)
				}
				time.Sleep(9 * time.Minute)
				if got := dials(); got > 40 {
					t.Errorf("the victim was dialled %d times in ten minutes", got)
				}
				for _, ip := range near {
					if got := w.Dials(alice.IP, ip); got > 0 {
						t.Errorf("%s was dialled %d times", ip, got)
					}
				}
			})
		})
	}
}

// TestE10_VictimOfMailboxes: contacts who are away name ports of somebody else's
// machine as their mailboxes. Whoever leaves mail for them dials it as seldom as for
// their records.
func TestE10_VictimOfMailboxes(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		const machine = 4000
		victim := nodetest.IP(machine)
		alice := w.user("alice")
		var names []string
		for i := range 4 {
			names = append(names, fmt.Sprint("mallory", i))
			mallory := w.user(names[i])
			nodetest.Befriend(alice, mallory)
			alice.UntilDelivered(alice.Say(names[i], "are you there?")...)
			mallory.Stop()
		}
		if err := alice.Store.Update(ctx, func(tx *store.Tx) error {
			devices, err := tx.Devices(0)
			if err != nil {
				return err
			}
			for _, d := range devices {
				set := &mailbox.Set{Version: 1 << 20}
				for port := range 3 {
					set.Nodes = append(set.Nodes, addressesOn(t, machine, 1+port)[port]) // each of another node
				}
				b, err := set.Marshal()
				if err != nil {
					return err
				}
				if err := tx.SaveDeviceBoxes(d.Hash, b); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			alice.Say(name, "you get this later")
		}
		for minute := range 10 {
			before := w.Dials(alice.IP, victim)
			time.Sleep(time.Minute)
			got := w.Dials(alice.IP, victim) - before
			if got > 8 || minute == 0 && got == 0 {
				t.Errorf("in minute %d the victim was dialled %d times, want at most 8", minute, got)
			}
		}
	})
}

// TestE10_ProvenAddress: who called us from an address is called there as often as
// anybody is, under whatever name and at whatever port.
func TestE10_ProvenAddress(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, by := w.user("alice"), w.user("by")
		machine := 1000 + w.users + 1 // of the contact that comes next
		w.gone(t, alice, by, "bob", addressesOn(t, machine, 4)...)
		earlier := w.Dials(alice.IP, nodetest.IP(machine))
		alice.Say("bob", "where are you?")
		time.Sleep(time.Minute)
		if got := w.Dials(alice.IP, nodetest.IP(machine)) - earlier; got <= 8 {
			t.Errorf("where a contact was met it was dialled %d times in a minute, as if nobody had been there", got)
		}
	})
}

// TestF13_DeafContact: a contact's device takes the conversation and never reads from
// it, or reads and never acknowledges anything, which no window below bounds. What is written to it is bounded however much there is to say, others
// hear from us as before, and what it did not take goes to the contact's
// mailboxes, where it is found.
func TestF13_DeafContact(t *testing.T) {
	t.Run("reads nothing", func(t *testing.T) { deafContact(t, func(network.Stream) {}) })
	t.Run("acknowledges nothing", func(t *testing.T) {
		deafContact(t, func(s network.Stream) { _, _ = io.Copy(io.Discard, s) })
	})
}

func deafContact(t *testing.T, listen func(network.Stream)) {
	simulateMail(t, 5, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		carol := w.user("carol")
		nodetest.Befriend(alice, carol)
		housed(bob, 3)
		bob.UntilDelivered(bob.Say("alice", "I am going")...)
		bob.Stop()
		deaf := w.Host(t, transport.Config{}, nodetest.IP(w.machine()))
		at := nodetest.IP(1000 + w.users)
		var written atomic.Int64
		w.Tap(func(from, to netip.Addr) func([]byte) []byte {
			return func(b []byte) []byte {
				if from == alice.IP && to == at {
					written.Add(int64(len(b)))
				}
				return b
			}
		})
		s, err := greet(t, deaf, alice, pairKey(t, alice, "bob"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Reset() }()
		go listen(s)
		const count, size = 160, 30 << 10
		text := strings.Repeat("x", size)
		for range count / 20 {
			alice.Say("bob", slices.Repeat([]string{text}, 20)...)
		}
		time.Sleep(time.Second)
		start := time.Now()
		alice.UntilDelivered(alice.Say("carol", "are you there?")...)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("another contact was told after %v", took)
		}
		time.Sleep(10 * time.Minute)
		if got := written.Load(); got < size || got > 5<<18 {
			t.Errorf("%d of %d bytes were written to who takes nothing", got, count*size)
		}
		alice.Stop()
		bob.Start()
		bob.Until("something comes from his mailboxes", func() bool { return len(bob.Messages("alice")) > before+1 })
		alice.Start()
		bob.UntilTexts("alice", before+1+count)
		agree(t, alice, bob, before+1+count)
	})
}
