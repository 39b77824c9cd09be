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

// natWorld is one community node outside, which relays, and a user at each place.
func natWorld(t *testing.T, places ...string) (w *world, users map[string]*home) {
	l := newLab(t)
	w = &world{network: &network{t: t, dir: shortDir(t)}, lab: l}
	start := func(ns string, h *home) *home {
		t.Helper()
		w.enter = l.in(ns)
		h.up()
		w.enter = nil
		return h
	}
	w.node = start("w1", w.home("n", "--role", "community", "--listen", "/ip4/192.0.0.131/tcp/4040", "--listen", "/ip4/192.0.0.131/udp/4040/quic-v1"))
	bootstrap := w.node.ready.Listen[slices.IndexFunc(w.node.ready.Listen, func(a string) bool { return strings.Contains(a, "/tcp/") })]
	users = make(map[string]*home)
	for _, ns := range places {
		users[ns] = start(ns, w.home(ns, "--name", ns, "--mailbox", "none", "--bootstrap", bootstrap))
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
	w, users := natWorld(t, places...)
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
	w, users := natWorld(t, "s", "y")
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

	// Another address of the same network, in the middle of a thousand texts.
	began = time.Now()
	done := make(chan string, 1)
	text := burst("move", 1000, 20)
	go func() {
		_, _, stderr := cli(t, text, "--home", users["s"].dir, "-q", "send", "y", "--stdin", "--wait", "delivered", "--timeout", "3m")
		done <- stderr
	}()
	time.Sleep(200 * time.Millisecond)
	w.lab.run("exec", "s", "sh", "-c", "ip addr del 10.0.3.2/24 dev eth0; ip addr add 10.0.3.77/24 dev eth0; ip route replace default via 10.0.3.1")
	if stderr := <-done; stderr != "" {
		t.Error(stderr)
	}
	t.Logf("a thousand texts across a move took %v", time.Since(began))
	if wrong := same("y", users["y"].read("s"), want); wrong != "" {
		t.Error(wrong)
	}
}
