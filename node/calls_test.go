package node

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/transport"
)

// TestF12_DialBudget: five hundred contacts who are away are called once a second
// all together, after a few at once; those who answer don't count.
func TestF12_DialBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newDialBudget()
		made := 0
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); {
			if wait := b.take(time.Now()); wait > 0 {
				time.Sleep(wait)
				continue
			}
			made++
		}
		if most := 600 + dialBurst; made > most || made < 600 {
			t.Errorf("%d calls in ten minutes, want at most %d", made, most)
		}
		for range 1000 {
			if wait := b.take(time.Now()); wait > dialEvery {
				t.Fatalf("the next call may be made after %v", wait)
			} else if wait > 0 {
				time.Sleep(wait)
				if b.take(time.Now()) != 0 {
					t.Fatal("a call that was promised was not to be had")
				}
			}
			b.give()
		}
		time.Sleep(time.Hour)
		for made = 0; b.take(time.Now()) == 0; made++ {
		}
		if made != dialBurst {
			t.Errorf("%d calls at once after an hour, want %d", made, dialBurst)
		}
	})
}

// TestE10_RecordAddresses: a record aims at most four dials at one victim, however
// many addresses it holds and whatever their form, and none of a stranger's at
// this machine or its LAN (docs/spec/roads.md, section 3).
func TestE10_RecordAddresses(t *testing.T) {
	const id, other = "/p2p/12D3KooWCjTcdWn6bcSjW5bT5bVFi5BRGcTrXd2RAz5yPdvrQKJW", "/p2p/12D3KooWQ6xG4Y8r7NwEjnCGDAs8dXo2VcY4vCpw8vBBo2AbcVZE"
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	host, err := transport.New(transport.Config{Key: key, Role: transport.Errands, Memory: transport.MinMemory})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	n := &Node{checker: &checker{}, cfg: Config{Host: host, Reachable: func(a ma.Multiaddr, known bool) bool {
		if known {
			return transport.ReachOf(a)&(transport.Public|transport.Private) != 0
		}
		return transport.ReachOf(a) == transport.Public
	}}}
	read := func(known bool, addrs ...string) (got []string, at map[netip.Addr]int) {
		var encoded [][]byte
		for _, a := range addrs {
			encoded = append(encoded, ma.StringCast(a).Bytes())
		}
		at = make(map[netip.Addr]int)
		for _, a := range n.addresses(encoded, known).Addrs {
			got = append(got, a.String())
			at[placeOf(a)]++
		}
		return got, at
	}
	victim := netip.MustParseAddr("20.1.1.1")
	var flood, mixed []string
	for i := range 100 {
		flood = append(flood, fmt.Sprintf("/ip4/%s/tcp/%d%s", victim, 1000+i, id))
		mixed = append(mixed, fmt.Sprintf("/ip4/%s/tcp/%d%s/p2p-circuit%s", victim, 1000+i, other, id), flood[i])
	}
	for name, addrs := range map[string][]string{"direct": flood, "direct and relayed": mixed} {
		if got, at := read(true, addrs...); at[victim] != maxPerPlace || len(got) != maxPerPlace {
			t.Errorf("%s: %d dials at the victim, want %d: %v", name, at[victim], maxPerPlace, got)
		}
	}
	for name, test := range map[string]struct {
		addr           string
		known, unknown bool
	}{
		"public":           {"/ip4/20.1.1.1/udp/1/quic-v1" + id, true, true},
		"relayed":          {"/ip4/20.1.1.1/tcp/1" + other + "/p2p-circuit" + id, true, true},
		"a relay's name":   {other + "/p2p-circuit" + id, true, true},
		"loopback":         {"/ip4/127.0.0.1/tcp/22" + id, false, false},
		"LAN":              {"/ip4/192.168.1.1/tcp/80" + id, true, false},
		"relay on the LAN": {"/ip4/192.168.1.1/tcp/80" + other + "/p2p-circuit" + id, true, false},
		"relay here":       {"/ip4/127.0.0.1/tcp/80" + other + "/p2p-circuit" + id, false, false},
		"two relays":       {"/ip4/20.1.1.1/tcp/1" + other + "/p2p-circuit" + other + "/p2p-circuit" + id, false, false},
		"nobody's":         {"/ip4/20.1.1.1/tcp/1", false, false},
		"nameless relay":   {"/ip4/20.1.1.1/tcp/1/p2p-circuit" + id, false, false},
		"far end":          {"/ip4/20.1.1.1/tcp/1" + other + "/p2p-circuit/ip4/127.0.0.1/tcp/2" + id, false, false},
	} {
		for known, want := range map[bool]bool{true: test.known, false: test.unknown} {
			if got, _ := read(known, test.addr); (len(got) == 1) != want {
				t.Errorf("%s, of a contact: %v: taken: %v", name, known, got)
			}
		}
	}
}
