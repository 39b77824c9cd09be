package node_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/kith-im/kith/node"
	"github.com/kith-im/kith/node/nodetest"
)

// TestI13_Partitions: two people write all the time while links between them, and
// between them and the community nodes, are cut in every way. When that is over,
// everything arrives once and in order.
func TestI13_Partitions(t *testing.T) {
	for name, cut := range map[string]func(n *nodetest.Network, a, b netip.Addr, nodes []netip.Addr){
		"the two apart, both with nodes": func(n *nodetest.Network, a, b netip.Addr, nodes []netip.Addr) {
			n.Partition(append([]netip.Addr{a}, nodes[:2]...), append([]netip.Addr{b}, nodes[2:]...))
		},
		"one apart from everything": func(n *nodetest.Network, a, _ netip.Addr, _ []netip.Addr) {
			n.Partition([]netip.Addr{a})
		},
		"only one way": func(n *nodetest.Network, a, b netip.Addr, _ []netip.Addr) {
			n.Cut(a, b)
		},
		"only one way, and one side without nodes": func(n *nodetest.Network, a, b netip.Addr, nodes []netip.Addr) {
			n.Cut(b, a)
			for _, ip := range nodes {
				n.Cut(ip, b)
			}
		},
		"asymmetric: each hears other nodes": func(n *nodetest.Network, a, b netip.Addr, nodes []netip.Addr) {
			for i, ip := range nodes {
				if i%2 == 0 {
					n.Cut(a, ip)
				} else {
					n.Cut(ip, b)
				}
			}
			n.Cut(a, b)
		},
	} {
		t.Run(name, func(t *testing.T) {
			nodetest.Bubble(t, 13, func(t *testing.T, n *nodetest.Network) {
				communities := nodetest.NewCommunities(t, n, 4)
				var ips []netip.Addr
				for _, c := range communities {
					ips = append(ips, c.IP)
				}
				with := nodetest.Options{Machine: 20, Ways: communities, Mailboxes: node.MailboxNone}
				a := nodetest.NewUser(t, n, "alice", with)
				with.Machine = 21
				b := nodetest.NewUser(t, n, "bob", with)
				nodetest.Befriend(a, b)
				const rounds = 20
				for i := range rounds {
					switch i {
					case 5:
						cut(n, a.IP, b.IP, ips)
					case 15:
						n.Heal()
					}
					a.Say("bob", fmt.Sprint("a", i))
					b.Say("alice", fmt.Sprint("b", i))
					time.Sleep(2 * time.Minute)
				}
				for u, other := range map[*nodetest.User]*nodetest.User{a: b, b: a} {
					u.UntilTexts(other.Name, 2*rounds)
					time.Sleep(time.Minute)
					next := 0
					texts := u.Texts(other.Name)
					for _, text := range texts {
						if text == fmt.Sprintf("%s: %c%d", other.Name, other.Name[0], next) {
							next++
						}
					}
					if next != rounds || len(texts) != 2*rounds {
						t.Errorf("%s has %d of %s's %d texts in order, and %d in all, want %d: %q", u.Name, next, other.Name, rounds, len(texts), 2*rounds, texts)
					}
				}
			})
		})
	}
}
