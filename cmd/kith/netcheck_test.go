package main

import (
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// lockedProxy is an HTTP proxy that takes no password, until the test ends.
func lockedProxy(t *testing.T) (addr string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
			conn.Close()
		}
	})
	stop = sync.OnceFunc(func() {
		ln.Close()
		serving.Wait()
	})
	t.Cleanup(stop)
	return ln.Addr().String(), stop
}

// netcheck decodes what kith netcheck finds, and returns how it ends.
func (h *home) netcheck(v any) (code int) {
	h.t.Helper()
	code, stdout, stderr := h.cli("netcheck", "--json")
	if err := json.Unmarshal([]byte(stdout), v); err != nil {
		h.t.Fatalf("netcheck: exit %d, %q, %q", code, stdout, stderr)
	}
	return code
}

// TestNetcheckExit: a netcheck that finds no road fails as what is tried then would,
// and one that finds something else wrong as doctor does.
func TestNetcheckExit(t *testing.T) {
	road, noRoad := checkJSON{Name: "network", OK: true}, checkJSON{Name: "network"}
	for _, test := range []struct {
		name   string
		checks []checkJSON
		code   int
	}{
		{"all is well", []checkJSON{road, {Name: "directory", OK: true}}, exitOK},
		{"something is got past", []checkJSON{{Name: "network: udp", OK: true, Hint: "TCP is used instead"}, road}, exitOK},
		{"an impostor beside a road", []checkJSON{{Name: "network: altered"}, road}, exitRefused},
		{"no directory", []checkJSON{road, {Name: "directory"}}, exitRefused},
		{"no road", []checkJSON{noRoad, {Name: "directory"}}, exitNetwork},
		{"the proxy", []checkJSON{{Name: "proxy"}}, exitNetwork},
	} {
		bad := 0
		for _, c := range test.checks {
			if !c.OK {
				bad++
			}
		}
		code := exitOK
		if err := netcheckFailure(test.checks, bad); err != nil {
			code = exitCode((&kith{}).explain(err).Code)
		}
		if code != test.code {
			t.Errorf("%s: exit %d, want %d", test.name, code, test.code)
		}
	}
}

// TestNetcheckNamesTheProxy: if the proxy is what fails, netcheck and doctor name
// it and the next step, nothing is remembered of the network, and neither its
// password nor, in the report for others, its address is shown.
func TestNetcheckNamesTheProxy(t *testing.T) {
	at, stop := lockedProxy(t)
	n := &network{t: t, dir: shortDir(t)}
	a := n.home("a", "--name", "ann", "--proxy", "http://ann:s3cret@"+at,
		"--bootstrap", "/ip4/8.8.8.8/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN")
	a.up()
	for _, test := range []struct {
		text, hint string
		before     func()
	}{
		{"The proxy wants a user name and a password, or others than it was given.", "name them for " + at, func() {}},
		{"The proxy can not be reached, and nothing goes past it.", "start the one at " + at, stop},
	} {
		test.before()
		var checked struct {
			Network string      `json:"network"`
			Checks  []checkJSON `json:"checks"`
		}
		if code := a.netcheck(&checked); code != exitNetwork {
			t.Errorf("netcheck: exit %d, want %d", code, exitNetwork)
		}
		if len(checked.Checks) != 1 || checked.Network != "" {
			t.Errorf("netcheck goes on about the network: %+v", checked)
		}
		code, doctor, _ := a.cli("doctor", "--json")
		var found struct {
			Checks []checkJSON `json:"checks"`
		}
		if err := json.Unmarshal([]byte(doctor), &found); code != exitRefused || err != nil {
			t.Fatalf("doctor: exit %d, %q", code, doctor)
		}
		told := 0
		for _, c := range append(found.Checks, checked.Checks...) {
			if c.Name == "proxy" && !c.OK && c.Text == test.text && strings.Contains(c.Hint, test.hint) {
				told++
			}
			if strings.HasPrefix(c.Name, "network") {
				t.Errorf("the network is blamed: %+v", c)
			}
		}
		if told != 2 {
			t.Errorf("doctor %+v, netcheck %+v; want twice %q", found.Checks, checked.Checks, test.text)
		}
		report := a.must("doctor", "--report")
		if strings.Contains(doctor, "s3cret") || strings.Contains(report, at) || !strings.Contains(report, "WRONG proxy: ") {
			t.Errorf("doctor shows\n%s\nand to others\n%s", doctor, report)
		}
	}
}

// TestOfflineTouchesNobody: with --preset offline nobody is dialled, by netcheck, by
// doctor or by the directory, be it the proxy or what behind it is known by a name.
func TestOfflineTouchesNobody(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &network{t: t, dir: shortDir(t)}
	a := n.home("a", "--name", "ann", "--preset", "offline", "--proxy", "http://"+ln.Addr().String(),
		"--bootstrap", "/dns4/node.example/tcp/4001/p2p/12D3KooWCjTcdWn6bcSjW5bT5bVFi5BRGcTrXd2RAz5yPdvrQKJW")
	a.up()
	a.must("bridge", "add", "/dns4/cats.example/tcp/443/tls/http-path/AAECAwQFBgcICQoLDA0ODw/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN")
	if code, _, stderr := a.cli("netcheck"); code != exitRefused || !strings.Contains(stderr, "--preset offline") {
		t.Errorf("netcheck: exit %d, %q", code, stderr)
	}
	a.cli("doctor")
	dialled := make(chan bool)
	go func() {
		_, err := ln.Accept() // or it waited there already
		dialled <- err == nil
	}()
	time.AfterFunc(100*time.Millisecond, func() { ln.Close() })
	if <-dialled {
		t.Error("somebody was dialled")
	}
}

// TestDoctorKnowsChoices: what the user switched off is not called wrong, and doctor
// says by what it is off and how it is switched on; status does not claim a road.
func TestDoctorKnowsChoices(t *testing.T) {
	for _, test := range []struct {
		args []string
		off  map[string]string // what doctor says, by name
		road map[string]string // what status says
		ok   bool              // nothing is wrong at all
	}{
		{
			args: []string{"--preset", "offline"}, ok: true,
			off: map[string]string{
				"preset": "--preset laptop, ends that", "directory": "Off, by --preset offline", "relays": "Off, by --preset offline",
				"announced": "Off, by --preset offline", "mailboxes": "Off, by --preset offline", "lan": "switches it on",
			},
			road: map[string]string{"relay": "off: nothing is dialled, by --preset offline", "direct": "off: nothing is dialled, by --preset offline"},
		},
		{
			args: []string{"--listen", "/ip4/127.0.0.1/tcp/0", "--mailbox", "none"},
			off:  map[string]string{"mailboxes": "--mailbox auto, ends that"},
			road: map[string]string{"relay": "not connected to any community node", "direct": "ok"},
		},
		{
			args: []string{"--hide-address"},
			off:  map[string]string{"listen": "--hide-address=false, ends that", "lan": "this machine's address, which is hidden"},
			road: map[string]string{"relay": "not connected to any community node", "direct": "off"},
		},
		{
			args: []string{"--mode", "censored"},
			off:  map[string]string{"listen": "in censored mode", "mode": "open ends it"},
			road: map[string]string{"relay": "not connected to any community node", "direct": "not connected to anybody, and nothing is listened on"},
		},
	} {
		n := &network{t: t, dir: shortDir(t)}
		a := n.home("a", append([]string{"--name", "ann"}, test.args...)...)
		a.up()
		var found struct {
			OK     bool        `json:"ok"`
			Checks []checkJSON `json:"checks"`
		}
		if _, doctor, _ := a.cli("doctor", "--json"); json.Unmarshal([]byte(doctor), &found) != nil || found.OK != test.ok {
			t.Errorf("%v: doctor says %s", test.args, doctor)
		}
		said := make(map[string]checkJSON)
		for _, c := range found.Checks {
			said[c.Name] = c
		}
		for name, want := range test.off {
			if c := said[name]; !c.OK || c.Hint != "" || !strings.Contains(c.Text, want) {
				t.Errorf("%v: of %s doctor says %+v, want %q", test.args, name, c, want)
			}
		}
		roads := a.status().Roads
		for name, want := range test.road {
			if roads[name] != want {
				t.Errorf("%v: the road %s is %q, want %q", test.args, name, roads[name], want)
			}
		}
	}
}

// TestDoctorWarnsOfOneWay: who has one community node is warned, and nothing is
// wrong, until that node is gone.
func TestDoctorWarnsOfOneWay(t *testing.T) {
	n := newNetwork(t)
	a := n.person("a", "ann")
	a.boxesWork(1)
	doctor := func() (code int, states map[string]string, text string) {
		t.Helper()
		code, text, _ = a.cli("doctor")
		states = make(map[string]string)
		for _, line := range strings.Split(text, "\n") {
			if f := strings.Fields(line); len(f) > 1 {
				states[f[1]] = f[0]
			}
		}
		return code, states, text
	}
	a.until("a relay is reserved", func() bool { _, s, _ := doctor(); return s["relays"] == "ok" })
	if code, s, text := doctor(); code != exitOK || s["directory"] != "warning" || s["mailboxes"] != "warning" {
		t.Errorf("with one node: exit %d\n%s", code, text)
	}
	if report := a.must("doctor", "--report"); !strings.Contains(report, "\nwarning mailboxes: ") {
		t.Errorf("the report is silent:\n%s", report)
	}
	n.node.kill()
	a.until("it is seen that the node is gone", func() bool { code, s, _ := doctor(); return code == exitRefused && s["mailboxes"] == "WRONG" })
}

// TestNetcheckAsksTheBridge: that the web site of a bridge answers is not taken for
// the bridge, and that one path to it was taken back not for all.
func TestNetcheckAsksTheBridge(t *testing.T) {
	n := &network{t: t, dir: shortDir(t)}
	b := n.home("b", "--role", "community", "--bridge", "--site", choir(t, n.dir), "--bridge-listen", "/ip4/127.0.0.1/tcp/"+freePort(t))
	b.up()
	var first, second bridgeInviteJSON
	b.decode(&first, "bridge", "invite")
	b.decode(&second, "bridge", "invite")
	a := n.home("a", "--name", "ann", "--listen", "/ip4/127.0.0.1/tcp/0", "--bootstrap", first.Address)
	a.up()
	for _, test := range []struct {
		name       string
		before     func()
		blocked    string
		reached    bool
		states     string // of what is said of the network, in its order
		text, hint string // of the first
	}{
		{"it works", func() {}, "", true, "ok", "Bridges can be reached", ""},
		{
			"its secret was taken back", func() { b.must("bridge", "revoke", first.ID) }, "bridge", false, "WRONG WRONG",
			"The web site at a bridge's address answers, and the bridge itself does not", "ask who gave it to you for a new one",
		},
		{"another path leads to it", func() {
			a.must("bridge", "add", second.Address)
			a.until("doctor sees that the bridge is back", func() bool {
				_, doctor, _ := a.cli("doctor")
				return strings.Contains(doctor, "Bridges can be reached (connected now)") && !strings.Contains(doctor, "the bridge itself does not")
			})
		}, "", true, "ok", "Bridges can be reached", ""},
	} {
		test.before()
		var checked struct {
			Blocked []string    `json:"blocked"`
			Bridges bool        `json:"bridges"`
			Checks  []checkJSON `json:"checks"`
		}
		if code := a.netcheck(&checked); (code != exitNetwork) != test.reached { // a relay may be lacking yet
			t.Errorf("%s: exit %d", test.name, code)
		}
		var about []checkJSON
		var states []string
		for _, c := range checked.Checks {
			if strings.HasPrefix(c.Name, "network") {
				about, states = append(about, c), append(states, checkState(c.OK, c.Hint))
			}
		}
		if strings.Join(checked.Blocked, " ") != test.blocked || checked.Bridges != test.reached || strings.Join(states, " ") != test.states {
			t.Fatalf("%s: %+v", test.name, checked)
		}
		if !strings.Contains(about[0].Text, test.text) || !strings.Contains(about[0].Hint, test.hint) {
			t.Errorf("%s: it says %+v", test.name, about[0])
		}
		if _, doctor, _ := a.cli("doctor"); !strings.Contains(doctor, test.text) {
			t.Errorf("%s: doctor does not say so:\n%s", test.name, doctor)
		}
	}
}
