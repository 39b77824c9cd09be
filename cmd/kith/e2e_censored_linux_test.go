package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tcpOf returns the TCP sockets of a daemon as "remote state", addresses in the
// kernel's hexadecimal.
func (h *home) tcpOf() (all []string) {
	h.t.Helper()
	proc := fmt.Sprintf("/proc/%d", h.cmd.Process.Pid)
	fds, err := filepath.Glob(proc + "/fd/*")
	if err != nil {
		h.t.Fatal(err)
	}
	ours := make(map[string]bool)
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
			ours[strings.Trim(to, "socket:[]")] = true
		}
	}
	for _, name := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile(proc + "/net/" + name)
		if err != nil {
			continue // a kernel without IPv6
		}
		for _, line := range strings.Split(string(table), "\n") {
			if f := strings.Fields(line); len(f) > 9 && ours[f[9]] {
				all = append(all, f[2]+" "+f[3])
			}
		}
	}
	return all
}

// TestD06_CensoredNewcomer: somebody whose only way in is the bridge that an
// invite names goes over to censored mode, meets who invited them, and talks, in
// both directions. Nothing but the bridge is connected to, and no log holds its
// address.
func TestD06_CensoredNewcomer(t *testing.T) {
	n := &network{t: t, dir: shortDir(t)}
	site := filepath.Join(n.dir, "site")
	if err := os.Mkdir(site, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(site, "index.html"), []byte("<p>Hello."), 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	n.node = n.home("n", "--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0",
		"--bridge", "--site", site, "--bridge-listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port))
	n.node.up()
	var way struct {
		Address string `json:"address"`
	}
	n.node.decode(&way, "bridge", "invite")

	alice := n.home("a", "--name", "alice", "--listen", "/ip4/127.0.0.1/tcp/0", "--bootstrap", way.Address)
	alice.up()
	bob := n.home("b", "--name", "bob", "--listen", "/ip4/127.0.0.1/tcp/0")
	bob.up()
	if mode := bob.status().Mode; mode == nil || mode.Mode != "open" || mode.Setting != "auto" {
		t.Errorf("the newcomer begins in mode %+v", mode)
	}
	n.meet(alice, "alice", bob, "bob")

	bridge := fmt.Sprintf(":%04X", port)
	for _, h := range []*home{alice, bob} {
		s := h.status()
		if s.Mode == nil || s.Mode.Mode != "censored" || len(s.Listen) > 0 || s.DHT.Mode != "errand" {
			t.Errorf("status: mode %+v, listens on %v, directory %s", s.Mode, s.Listen, s.DHT.Mode)
		}
		for _, socket := range h.tcpOf() {
			if remote, state, _ := strings.Cut(socket, " "); state == "0A" || !strings.HasSuffix(remote, bridge) {
				t.Errorf("a socket to %s in state %s", remote, state)
			}
		}
	}
	secret := strings.Split(way.Address[strings.Index(way.Address, "/http-path/"):], "/")[2]
	for _, h := range []*home{alice, bob, n.node} {
		log, err := os.ReadFile(h.log)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(log), secret) {
			t.Errorf("a log holds the bridge's path: %s", h.dir)
		}
	}

	// What is said of the network is about the bridge.
	var checked struct {
		Blocked []string    `json:"blocked"`
		Bridges bool        `json:"bridges"`
		Checks  []checkJSON `json:"checks"`
	}
	bob.netcheck(&checked) // the first relay may be lacking yet
	if !checked.Bridges || len(checked.Blocked) > 0 {
		t.Errorf("netcheck: %+v", checked)
	}
	if !slices.ContainsFunc(checked.Checks, func(c checkJSON) bool {
		return c.Name == "directory" && c.OK && strings.HasPrefix(c.Text, "The directory answers through a bridge")
	}) {
		t.Errorf("netcheck does not say that the directory answers: %+v", checked.Checks)
	}
	bob.boxesWork(1)
	id := strings.Fields(bob.must("send", "alice", "by which road?", "--wait", "delivered", "--timeout", "60s"))[0]
	if trace := bob.must("trace", id); !strings.Contains(trace, "bridge: ") {
		t.Errorf("the ledger does not name the bridge:\n%s", trace)
	}
	if road := bob.status().Roads["bridge"]; road != "ok, connected to 1 of 1" {
		t.Errorf("the road bridge: %s", road)
	}
	bob.must("doctor") // one bridge is a warning
	report := bob.must("doctor", "--report")
	for _, want := range []string{"ok listen: ", "warning directory: ", "ok network: ", "ok relays: ", "ok clock: "} {
		if !strings.Contains(report, want) {
			t.Errorf("the report lacks %q:\n%s", want, report)
		}
	}
	if strings.Contains(report, "127.0.0.1") || strings.Contains(report, "alice") {
		t.Errorf("the report names somebody:\n%s", report)
	}

	// It stays so after a restart, and the user may say otherwise at any time.
	bob.stop()
	bob.up()
	bob.must("send", "alice", "after a restart", "--wait", "delivered", "--timeout", "60s")
	var mode modeJSON
	bob.decode(&mode, "mode")
	if mode.Mode != "censored" || mode.Bridges != 1 {
		t.Errorf("after a restart: %+v", mode)
	}
	bob.decode(&mode, "mode", "open")
	if s := bob.status(); mode.Mode != "open" || len(s.Listen) == 0 {
		t.Errorf("open again: %+v, listens on %v", mode, s.Listen)
	}
}

// TestD17_NothingBuiltIn: a first start that was told of no way in connects to
// nobody: there is no built-in address, and no look for updates.
func TestD17_NothingBuiltIn(t *testing.T) {
	n := &network{t: t, dir: shortDir(t)}
	h := n.home("a", "--name", "ann", "--listen", "/ip4/127.0.0.1/tcp/0")
	h.up()
	h.status()
	for _, socket := range h.tcpOf() {
		if remote, state, _ := strings.Cut(socket, " "); state != "0A" {
			t.Errorf("a socket to %s in state %s", remote, state)
		}
	}
	if s := h.status(); s.Peers > 0 || s.DHT.Table > 0 {
		t.Errorf("connected to %d peers, %d known", s.Peers, s.DHT.Table)
	}
}
