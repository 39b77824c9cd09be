package transport

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// TestE10_UnprovenAddresses: how often peers are dialled at one IP address in two
// minutes of a new port a second, by what is known of them there.
func TestE10_UnprovenAddresses(t *testing.T) {
	const at = "203.0.113.7"
	ip := netip.MustParseAddr(at)
	peers := make([]peer.ID, 20)
	for i := range peers {
		key, err := NewKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if peers[i], err = peer.IDFromPrivateKey(key); err != nil {
			t.Fatal(err)
		}
	}
	relay := func(p peer.ID) ma.Multiaddr { return ma.StringCast("/ip4/" + at + "/tcp/4040/p2p/" + p.String()) }
	for name, test := range map[string]struct {
		prepare func(*unproven)
		any     bool // they may be dialled as often as one likes
	}{
		"contacts": {func(u *unproven) {
			for _, p := range peers {
				u.roads.set(p, Trusted, nil)
			}
		}, false},
		"contacts who are met through relays": {func(u *unproven) {
			for _, p := range peers {
				u.roads.set("contact", Relayed, nil)
				u.name("contact", relay(p))
			}
		}, false},
		"contacts who were met elsewhere": {func(u *unproven) {
			for _, p := range peers {
				u.roads.set(p, Trusted, []netip.Addr{netip.MustParseAddr("203.0.113.8")})
			}
		}, false},
		"contacts who were met there": {func(u *unproven) {
			for _, p := range peers {
				u.roads.set(p, Trusted, []netip.Addr{ip})
			}
		}, true},
		"contacts whose relay was met there": {func(u *unproven) {
			for _, p := range peers {
				u.roads.set("contact", Trusted, []netip.Addr{ip})
				u.name("contact", relay(p))
			}
		}, true},
		"those who showed their key there": {func(u *unproven) {
			for _, p := range peers {
				u.roads.set(p, Trusted, nil)
				u.met[spot{p, ip}] = struct{}{}
			}
		}, true},
		"community nodes": {func(*unproven) {}, true},
		"relays that a stranger names": {func(u *unproven) {
			for _, p := range peers {
				u.name("stranger", relay(p))
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := newUnproven(newRoads())
				const seconds = 120
				made := 0
				for second := range seconds {
					test.prepare(u)
					a := ma.StringCast(fmt.Sprintf("/ip4/%s/tcp/%d", at, 1000+second))
					for range 2 { // one dial is asked about by all who wait for it
						if u.mayDial(peers[second%len(peers)], a) {
							made++
						}
					}
					if elsewhere := ma.StringCast("/ip4/198.51.100.1/tcp/1"); second == 30 && !u.mayDial(peers[0], elsewhere) {
						t.Error("another address pays for this one")
					}
					if second == 59 && !test.any && made != 2*maxUnproven {
						t.Errorf("%d dials in a minute, want %d", made/2, maxUnproven)
					}
					time.Sleep(time.Second)
				}
				want := 2 * 2 * maxUnproven
				if test.any {
					want = 2 * seconds
				}
				if made != want {
					t.Errorf("%d dials in two minutes, want %d", made/2, want/2)
				}
			})
		})
	}
}

// TestE10_UnprovenElsewhere: what other hosts of ours dial counts with this one's
// dials, each of theirs, until the peer has been met at the address.
func TestE10_UnprovenElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Host{roads: newRoads()}
		h.calls = newUnproven(h.roads)
		h.roads.set("contact", Trusted, nil)
		a, elsewhere := ma.StringCast("/ip4/203.0.113.7/tcp/1"), ma.StringCast("/ip4/203.0.113.8/tcp/1")
		for i := range maxUnproven {
			if i == 3 && !h.calls.mayDial("contact", a) || i != 3 && !h.MayCall("node", a) {
				t.Fatalf("no more than %d dials in a minute", i)
			}
		}
		if h.MayCall("node", a) || h.MayCall("another", a) || h.calls.mayDial("contact", ma.StringCast("/ip4/203.0.113.7/tcp/2")) {
			t.Error("one dial more than there may be")
		}
		if !h.MayCall("node", elsewhere) {
			t.Error("another address pays for this one")
		}
		h.calls.met[spot{"node", netip.MustParseAddr("203.0.113.7")}] = struct{}{}
		for range 2 * maxUnproven {
			if !h.MayCall("node", a) {
				t.Fatal("who was met there is not dialled there")
			}
		}
		if h.MayCall("another", a) {
			t.Error("one who was not met there is")
		}
		time.Sleep(unprovenTime)
		if !h.MayCall("another", a) {
			t.Error("a minute later it is not dialled")
		}
	})
}

// TestE10_UnprovenIsBounded: what is remembered of dials is forgotten.
func TestE10_UnprovenIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnproven(newRoads())
		u.roads.set("contact", Trusted, nil)
		for i := range 3 * manyUnproven {
			at := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
			u.mayDial("contact", ma.StringCast("/ip4/"+at.String()+"/tcp/1"))
			u.name("contact", ma.StringCast(fmt.Sprintf("/ip4/%s/tcp/1", at)))
			if i%manyUnproven == manyUnproven-1 {
				time.Sleep(unprovenTime + time.Second)
			}
		}
		if got := len(u.dials); got > manyUnproven {
			t.Errorf("%d addresses are remembered", got)
		}
	})
}
