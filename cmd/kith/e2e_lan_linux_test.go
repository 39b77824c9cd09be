package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// lanTime is how long two people on one network take to talk, at most, once both
// have switched it on.
const lanTime = 5 * time.Second

// wiring is a switch, and machines that are attached to it and to nothing else:
// network namespaces, without a route to anywhere.
type wiring struct {
	t        testing.TB
	prefix   string
	machines []string
}

func newWiring(t testing.TB) *wiring {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	w := &wiring{t: t, prefix: fmt.Sprintf("kith%d", os.Getpid())}
	if out, err := exec.Command("ip", "netns", "add", w.prefix).CombinedOutput(); err != nil {
		t.Skipf("network namespaces can not be made here: %v: %s", err, out)
	}
	t.Cleanup(func() { w.ip("netns", "del", w.prefix) })
	w.ip("-n", w.prefix, "link", "add", "switch", "type", "bridge")
	w.ip("-n", w.prefix, "link", "set", "switch", "up")
	return w
}

func (w *wiring) ip(args ...string) string {
	w.t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// machine attaches a machine. Without an address it has the one that IPv6 gives
// itself, as where nobody hands out others.
func (w *wiring) machine(address string) string {
	w.t.Helper()
	i := len(w.machines)
	ns, port := fmt.Sprintf("%s-%d", w.prefix, i), fmt.Sprintf("port%d", i)
	w.machines = append(w.machines, ns)
	w.ip("netns", "add", ns)
	w.t.Cleanup(func() { w.ip("netns", "del", ns) })
	w.ip("-n", ns, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", w.prefix)
	if address != "" {
		w.ip("netns", "exec", ns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
		w.ip("-n", ns, "addr", "add", address, "brd", "+", "dev", "eth0")
	}
	w.ip("-n", w.prefix, "link", "set", port, "master", "switch", "up")
	w.ip("-n", ns, "link", "set", "lo", "up")
	w.ip("-n", ns, "link", "set", "eth0", "up")
	return ns
}

// person starts a daemon as one does by hand on a machine of the wiring.
func (w *wiring) person(n *network, ns, name string, args ...string) *home {
	w.t.Helper()
	h := n.home(name, append([]string{"--name", name}, args...)...)
	h.ns = ns
	h.up()
	return h
}

// TestLAN: two people on a switch that leads nowhere accept an invite and talk,
// with nothing between them, within lanTime of switching it on.
func TestLAN(t *testing.T) {
	for name, addresses := range map[string][2]string{
		"IPv4":            {"192.168.77.1/24", "192.168.77.2/24"},
		"IPv6 link-local": {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWiring(t)
			n := &network{t: t, dir: shortDir(t)}
			a := w.person(n, w.machine(addresses[0]), "dora")
			b := w.person(n, w.machine(addresses[1]), "emil")
			link := a.invite("--name", "emil")
			if l := a.status().LAN; l.On {
				t.Error("it is on without being asked for")
			}
			if addresses[0] == "" {
				time.Sleep(2 * time.Second) // Linux makes sure that its address is nobody else's
			}

			a.must("lan", "on")
			b.must("lan", "on")
			began := time.Now()
			b.must("accept", link, "--name", "dora", "--wait", "--timeout", "20s")
			b.must("send", "dora", "over the switch", "--wait", "delivered", "--timeout", "20s")
			took := time.Since(began)
			t.Logf("the first text was delivered %v after both had switched it on", took.Round(time.Millisecond))
			if took > lanTime {
				t.Errorf("that is more than %v", lanTime)
			}
			a.must("rename", a.onlyContact(), "emil")
			a.must("send", "emil", "and back", "--wait", "delivered", "--timeout", "20s")
			for _, h := range []*home{a, b} {
				var p struct{ Road string }
				h.decode(&p, "ping", map[*home]string{a: "emil", b: "dora"}[h])
				if p.Road != "lan" {
					t.Errorf("the road is %q", p.Road)
				}
				h.until("the other is heard", func() bool { return h.status().LAN.Devices == 1 })
				if s := h.status(); s.LAN.Networks != 1 || s.Roads["lan"] != "ok" {
					t.Errorf("status shows %+v and roads %v", s.LAN, s.Roads)
				}
			}
			texts := decodeLines[messageJSON](t, b.must("read", "dora", "--json"))
			var trace struct {
				Devices []struct {
					Attempts []struct{ Road, Result string }
				}
			}
			b.decode(&trace, "trace", texts[0].ID)
			if a := trace.Devices[0].Attempts; len(a) == 0 || a[len(a)-1].Road != "lan" {
				t.Errorf("the trace shows %+v", a)
			}

			// It stays on, and a machine that comes back under another identity of
			// its transport is found again.
			b.stop()
			a.must("send", "emil", "while you were away")
			b.up()
			began = time.Now()
			b.until("the text is there", func() bool { return len(b.read("dora")) == 3 })
			t.Logf("what had waited was there %v after the start", time.Since(began).Round(time.Millisecond))
			if took := time.Since(began); took > lanTime {
				t.Errorf("that is more than %v", lanTime)
			}

			b.must("lan", "off")
			if l := b.status().LAN; l.On || l.Devices != 0 {
				t.Errorf("switched off, it is %+v", l)
			}
			n.quiet("dora", "emil", "192.168", "fe80")
		})
	}
}

// TestLANNode: on a switch that leads nowhere, a community node whose operator
// lets it be found there is everything that mailboxes need: two people who are
// never there together exchange texts.
func TestLANNode(t *testing.T) {
	for name, ways := range map[string][]string{
		"as ever": nil,
		"cut off from the internet": {
			"--bootstrap", "/ip4/9.9.9.9/tcp/4001/p2p/12D3KooWLHA1JDfiPHpaBiKG94ET6mmZjDQKnruJFvQpibszgHYE",
		},
	} {
		t.Run(name, func(t *testing.T) { testLANNode(t, ways...) })
	}
}

func testLANNode(t *testing.T, ways ...string) {
	w := newWiring(t)
	n := &network{t: t, dir: shortDir(t)}
	node := n.home("n", "--role", "community", "--lan", "on")
	node.ns = w.machine("192.168.78.1/24")
	node.up()
	if l := node.status().LAN; !l.On {
		t.Errorf("the community node's local network is %+v", l)
	}
	a := w.person(n, w.machine("192.168.78.2/24"), "dora", append(ways, "--lan", "on")...)
	b := w.person(n, w.machine("192.168.78.3/24"), "emil", append(ways, "--lan", "on")...)
	b.must("accept", a.invite("--name", "emil"), "--name", "dora", "--wait", "--timeout", "20s")
	a.must("rename", a.onlyContact(), "emil")
	for _, h := range []*home{a, b} {
		h.until("the node is known, and keeps a mailbox", func() bool {
			s := h.status()
			return s.LAN.Nodes == 1 && s.DHT.Table == 1 && s.Mailboxes.Healthy == 1
		})
	}
	b.must("send", "dora", "a first text", "--wait", "delivered", "--timeout", "20s")
	a.until("emil's mailbox is known", func() bool { return len(a.read("emil")) == 1 })
	b.stop()
	a.must("send", "emil", "when you are back")
	a.until("the text is at the mailbox", func() bool {
		var s struct{ Envelopes int64 }
		node.decode(&s, "node", "status")
		return s.Envelopes > 0
	})
	a.stop()
	b.up()
	b.until("the text is there", func() bool { return len(b.read("dora")) == 2 })
}
