package main

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// natKinds are the lab's clients and what stands before each.
var natKinds = []struct{ ns, kind string }{
	{"p", "none"},
	{"f", "full cone"},
	{"a", "port-restricted"},
	{"b", "port-restricted"},
	{"a2", "port-restricted, a's"},
	{"s", "symmetric"},
	{"y", "symmetric"},
}

// natRoad is the road that two kinds of NAT allow at best: whoever is symmetric
// meets those alone who let in anybody, whichever port they come from.
func natRoad(a, b string) string {
	if strings.HasPrefix(a, "port-restricted") && strings.HasPrefix(b, "port-restricted, a's") {
		return "direct or lan"
	}
	open := func(kind string) bool { return kind == "none" || kind == "full cone" }
	if a == "symmetric" && !open(b) || b == "symmetric" && !open(a) {
		return "relay"
	}
	return "direct"
}

// natWorld is one or more community nodes outside, which relay, and a user at each
// place.
func natWorld(t *testing.T, nodes int, places ...string) (w *world, users map[string]*home) {
	l := newLab(t)
	w = &world{network: &network{t: t, dir: shortDir(t)}, lab: l}
	start := func(ns string, h *home) *home {
		t.Helper()
		w.enter = l.in(ns)
		h.up()
		w.enter = nil
		return h
	}
	var ways []string
	for i := range nodes {
		at := fmt.Sprintf("/ip4/192.0.0.%d", 131+i)
		node := start(fmt.Sprintf("w%d", 1+i), w.home(fmt.Sprintf("n%d", i), append(slices.Clone(ways),
			"--role", "community", "--listen", at+"/tcp/4040", "--listen", at+"/udp/4040/quic-v1")...))
		tcp := slices.IndexFunc(node.ready.Listen, func(a string) bool { return strings.Contains(a, "/tcp/") })
		ways = append(ways, "--bootstrap", node.ready.Listen[tcp])
		w.nodes = append(w.nodes, node)
	}
	users = make(map[string]*home)
	for _, ns := range places {
		users[ns] = start(ns, w.home(ns, append(slices.Clone(ways), "--name", ns, "--mailbox", "none")...))
	}
	return w, users
}

// befriend makes contacts of two users and returns when the first text between
// them was delivered, and after how long.
func (w *world) befriend(from, to *home, toName, fromName string) time.Duration {
	w.t.Helper()
	link := to.invite("--name", fromName)
	began := time.Now()
	from.must("accept", link, "--name", toName, "--timeout", "20s")
	from.must("send", toName, "hello", "--wait", "delivered", "--timeout", "30s")
	return time.Since(began)
}

// road is what a ping takes now, "" for none.
func (w *world) road(h *home, contact string) string {
	w.t.Helper()
	code, stdout, _ := h.cli("--json", "ping", contact)
	if code != exitOK {
		return ""
	}
	for _, road := range []string{"direct", "relay", "lan"} {
		if strings.Contains(stdout, strconv.Quote(road)) {
			return road
		}
	}
	return ""
}

// TestLab_NAT has a client behind each kind of NAT meet one behind each other
// kind, with one relay between them: directly within three seconds of the first
// text where the kinds allow it.
func TestLab_NAT(t *testing.T) {
	if !labAll {
		t.Skip("make lab")
	}
	var places []string
	for _, k := range natKinds {
		places = append(places, k.ns)
	}
	w, users := natWorld(t, 1, places...)
	var out bytes.Buffer
	table := newTable(&out)
	fmt.Fprintln(table, "from\tto\tfirst text\troad\tafter\twanted")
	for i, a := range natKinds {
		for _, b := range natKinds[i+1:] {
			want := natRoad(a.kind, b.kind)
			first := w.befriend(users[a.ns], users[b.ns], b.ns, a.ns)
			began, got := time.Now(), ""
			for {
				got = w.road(users[a.ns], b.ns)
				if time.Since(began) > 5*time.Second || got != "" && strings.Contains(want, got) && want != "relay" {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			after := time.Since(began)
			fmt.Fprintf(table, "%s (%s)\t%s (%s)\t%.2f s\t%s\t%.2f s\t%s\n", a.ns, a.kind, b.ns, b.kind, first.Seconds(), got, after.Seconds(), want)
			if got == "" || !strings.Contains(want, got) || got != "relay" && after > 3*time.Second {
				t.Errorf("%s to %s: %s after %v, want %s", a.kind, b.kind, got, after, want)
			}
		}
	}
	table.Flush()
	t.Logf("\n%s", out.String())
}

// TestLab_Relayed sends a megabyte over a relay, between two who have no other
// road, and more while one of them moves to another network.
func TestLab_Relayed(t *testing.T) {
	if !labAll {
		t.Skip("make lab")
	}
	w, users := natWorld(t, 2, "s", "y")
	w.befriend(users["s"], users["y"], "y", "s")
	if got := w.road(users["s"], "y"); got != "relay" {
		t.Errorf("the road is %q", got)
	}
	want := []string{"hello"}
	burst := func(name string, count, size int) string {
		var b strings.Builder
		for i := range count {
			text := fmt.Sprintf("%s %04d %s", name, i, strings.Repeat("x", size))
			want = append(want, text)
			fmt.Fprintln(&b, text)
		}
		return b.String()
	}
	began := time.Now()
	if code, _, stderr := cli(t, burst("megabyte", 256, 4080), "--home", users["s"].dir, "-q", "send", "y", "--stdin", "--wait", "delivered", "--timeout", "2m"); code != exitOK {
		t.Fatal(stderr)
	}
	t.Logf("a megabyte over the relay took %v", time.Since(began))

	want = append(want, w.across(users["s"], "y", "move", func() {
		// Another address of the same network.
		w.lab.run("exec", "s", "sh", "-c", "ip addr del 10.0.3.2/24 dev eth0; ip addr add 10.0.3.77/24 dev eth0; ip route replace default via 10.0.3.1")
	})...)
	want = append(want, w.across(users["s"], "y", "relay", func() {
		// The relay that carries the conversation is one of two.
		code, out, _ := users["s"].cli("ping", "y")
		for i, n := range w.nodes {
			if code == exitOK && strings.Contains(out, fmt.Sprintf("192.0.0.%d", 131+i)) {
				n.kill()
				return
			}
		}
		t.Errorf("no relay is seen: %s", out)
	})...)
	if wrong := same("y", users["y"].read("s"), want); wrong != "" {
		t.Error(wrong)
	}
}

// across sends a thousand texts over some seconds, has something happen in their
// middle, and returns what was sent when all of it is delivered.
func (w *world) across(from *home, to, name string, happens func()) (sent []string) {
	w.t.Helper()
	const batches, size = 20, 50
	began := time.Now()
	for batch := range batches {
		var b strings.Builder
		for i := range size {
			text := fmt.Sprintf("%s %04d", name, batch*size+i)
			sent = append(sent, text)
			fmt.Fprintln(&b, text)
		}
		if batch == batches/2 {
			happens()
		}
		if code, _, stderr := cli(w.t, b.String(), "--home", from.dir, "-q", "send", to, "--stdin"); code != exitOK {
			w.t.Fatal(stderr)
		}
		time.Sleep(100 * time.Millisecond)
	}
	// What is sent last is delivered last.
	sent = append(sent, name+" end")
	from.must("send", to, name+" end", "--wait", "delivered", "--timeout", "2m")
	w.t.Logf("%s: a thousand texts took %.1f s", name, time.Since(began).Seconds())
	return sent
}

// TestLab_UDPDies: in an open network, two who talk over QUIC go on over TCP when
// UDP is dropped from one moment to the next.
func TestLab_UDPDies(t *testing.T) {
	if !labAll {
		t.Skip("make lab")
	}
	l := newLab(t)
	w := newWorld(l)
	l.run("policy", "none")
	link := w.stock.invite("--name", "new")
	h := w.home("new", "--name", "new", "--listen", "/ip4/0.0.0.0/tcp/0", "--listen", "/ip4/0.0.0.0/udp/0/quic-v1")
	defer h.kill()
	w.enter = l.in("b")
	err := h.start()
	w.enter = nil
	if err != nil {
		t.Fatal(err)
	}
	h.must("accept", link, "--name", "friend", "--timeout", "20s")
	h.must("send", "friend", "first", "--wait", "delivered", "--timeout", "30s")
	if _, road, _ := h.cli("ping", "friend"); !strings.Contains(road, "quic") {
		t.Errorf("they do not talk over QUIC: %s", road)
	}
	want := append([]string{"first"}, w.across(h, "friend", "udp", func() { l.run("policy", "udp") })...)
	if wrong := same("sam", w.stock.read("new"), want); wrong != "" {
		t.Error(wrong)
	}
	if _, road, _ := h.cli("ping", "friend"); !strings.Contains(road, "tcp") {
		t.Errorf("they do not talk over TCP: %s", road)
	}
}
