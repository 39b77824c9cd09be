package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// newMailNetwork is a network of three community nodes.
func newMailNetwork(t testing.TB) (n *network, nodes []*home) {
	t.Helper()
	n = newNetwork(t)
	nodes = []*home{n.node}
	for _, name := range []string{"n2", "n3"} {
		h := n.home(name, "--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0", "--bootstrap", n.node.ready.Listen[0])
		h.up()
		nodes = append(nodes, h)
	}
	return n, nodes
}

// mailPerson starts a user who knows all three nodes.
func mailPerson(n *network, nodes []*home, dir, name string) *home {
	n.t.Helper()
	args := []string{"--name", name, "--listen", "/ip4/127.0.0.1/tcp/0"}
	for _, node := range nodes {
		args = append(args, "--bootstrap", node.ready.Listen[0])
	}
	h := n.home(dir, args...)
	h.up()
	return h
}

// boxesWork waits until enough of a person's mailboxes are open and told.
func (h *home) boxesWork(total int32) {
	h.t.Helper()
	h.until("the mailboxes work", func() bool {
		s := h.status()
		return s.Mailboxes != nil && s.Mailboxes.Healthy == total
	})
}

// nodeStatus is what a community node says it keeps.
func (h *home) nodeStatus() (s nodeJSON) {
	h.t.Helper()
	h.decode(&s, "node", "status")
	return s
}

// TestNeverTogether: two people become contacts and write ten texts each way,
// and their daemons never run at the same time.
func TestNeverTogether(t *testing.T) {
	t.Parallel()
	n, nodes := newMailNetwork(t)
	step := func(what string) func() {
		began := time.Now()
		return func() { t.Logf("%s: %v", what, time.Since(began).Round(time.Millisecond)) }
	}
	a := mailPerson(n, nodes, "a", "ann")
	a.boxesWork(3)
	link := a.invite()
	a.until("the invite's records are with the community nodes", func() bool {
		s := a.status()
		return s.PublishGoal > 0 && s.Published == s.PublishGoal
	})
	a.stop()

	b := mailPerson(n, nodes, "b", "ben")
	b.must("accept", link, "--name", "ann")
	b.boxesWork(3)
	var fromB, fromA []string
	for i := range 10 {
		fromB = append(fromB, fmt.Sprintf("ben writes %d", i))
		fromA = append(fromA, fmt.Sprintf("ann writes %d", i))
	}
	send := func(h *home, to string, texts []string) {
		t.Helper()
		code, stdout, stderr := cli(t, strings.Join(texts, "\n"), "--home", h.dir, "send", to, "--stdin", "--wait", "held", "--timeout", "60s", "--json")
		sent := decodeLines[struct{ State string }](t, stdout)
		if code != exitOK || len(sent) != len(texts) {
			t.Fatalf("send --wait held: exit %d, %d lines, %s", code, len(sent), stderr)
		}
		for _, m := range sent {
			if m.State != "held" {
				t.Errorf("a message is %s, want held", m.State)
			}
		}
	}
	done := step("ben's texts are held")
	send(b, "ann", fromB)
	done()
	if text := b.must("trace", b.read("ann")[0].ID); !strings.Contains(text, "held ") || !strings.Contains(text, "/3 until ") {
		t.Errorf("trace shows %q", text)
	}
	if s := nodes[0].nodeStatus(); s.Boxes == 0 || s.State != "serving" {
		t.Errorf("a node says %+v", s)
	}
	b.stop()

	texts := func(h *home, with string, mine bool) (out []string) {
		for _, m := range h.read(with) {
			if m.FromMe == mine {
				out = append(out, m.Text)
			}
		}
		return out
	}
	states := func(h *home, with string) (delivered int) {
		for _, m := range h.read(with) {
			if m.FromMe && m.State == "delivered" {
				delivered++
			}
		}
		return delivered
	}
	a.up()
	ben := a.onlyContact()
	done = step("ann has them")
	a.until("ann has what ben wrote", func() bool { return len(texts(a, ben, false)) == len(fromB) })
	done()
	done = step("ann's texts are held")
	send(a, ben, fromA)
	done()
	done = step("ann's receipts have left")
	a.until("the receipts have left", func() bool { return a.status().Outbox == int64(len(fromA)) })
	done()
	a.stop()

	b.up()
	done = step("ben has ann's texts and her receipts")
	b.until("ben has what ann wrote, and her receipts", func() bool {
		return len(texts(b, "ann", false)) == len(fromA) && states(b, "ann") == len(fromB)
	})
	done()
	done = step("ben's receipts have left")
	b.until("the receipts have left", func() bool { return b.status().Outbox == 0 })
	done()
	b.stop()

	a.up()
	a.until("ann has ben's receipts", func() bool { return states(a, ben) == len(fromA) })
	b.up()
	for _, test := range []struct {
		h    *home
		with string
		want []string
	}{{a, ben, fromB}, {b, "ann", fromA}} {
		if got := texts(test.h, test.with, false); strings.Join(got, "|") != strings.Join(test.want, "|") {
			t.Errorf("%s reads %q", test.h.dir, got)
		}
	}
	n.quiet("ann writes", "ben writes", link)
}

// TestOperator looks at a live node, changes it, retires it, and takes it back.
func TestOperator(t *testing.T) {
	n := newNetwork(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().String()
	ln.Close()
	h := n.home("op", "--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0", "--quota", "100MB", "--metrics", at)
	h.up()
	if s := h.nodeStatus(); s.State != "serving" || s.Limits.Quota != 100e6 || s.Limits.RetentionS != 30*86400 {
		t.Errorf("a fresh node is %+v", s)
	}
	h.must("node", "set", "--quota", "200MB", "--retention", "7d")
	h.must("node", "drain")
	for range 2 { // the second time after a restart
		if s := h.nodeStatus(); s.State != "draining" || s.Limits.Quota != 200e6 || s.Limits.RetentionS != 7*86400 {
			t.Errorf("after the changes the node is %+v", s)
		}
		h.stop()
		h.up()
	}
	res, err := http.Get("http://" + at + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(b), "\nkith_mailbox_draining 1\n") || !strings.Contains(string(b), "kith_mailbox_quota_bytes 200000000") {
		t.Errorf("the metrics are %s, %v", b, err)
	}
	h.must("node", "drain", "--undo")
	if s := h.nodeStatus(); s.State != "serving" {
		t.Errorf("after drain --undo the node is %s", s.State)
	}
	if code, _, stderr := h.cli("mailbox", "list"); code != exitRefused || !strings.Contains(stderr, "kith node status") {
		t.Errorf("mailbox list on a community node: exit %d, %s", code, stderr)
	}
}

// TestMailboxVerbs chooses, tests and gives up mailboxes of a live daemon.
func TestMailboxVerbs(t *testing.T) {
	n, nodes := newMailNetwork(t)
	a := mailPerson(n, nodes, "a", "ann")
	a.boxesWork(3)
	own := n.home("own", "--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0")
	own.up()
	var added mailboxJSON
	a.decode(&added, "mailbox", "add", own.ready.Listen[0])
	if added.AddedBy != "you" {
		t.Errorf("the mailbox is %+v", added)
	}
	a.boxesWork(4)
	if out := a.must("mailbox", "test"); strings.Count(out, "ok ") != 4 {
		t.Errorf("mailbox test prints %q", out)
	}
	a.decode(&added, "mailbox", "remove", added.ID[:4])
	if added.State != "leaving" {
		t.Errorf("the removed mailbox is %+v", added)
	}
	for _, address := range []string{"/ip4/127.0.0.1/tcp/1", "nonsense"} {
		if code, _, stderr := a.cli("mailbox", "add", address); code == exitOK || strings.Count(stderr, "\n") != 1 {
			t.Errorf("mailbox add %s: exit %d, %q", address, code, stderr)
		}
	}
	if code, _, stderr := a.cli("mailbox", "remove", "zzzz"); code != exitNotFound {
		t.Errorf("mailbox remove of none: exit %d, %q", code, stderr)
	}
	if code, _, stderr := a.cli("node", "status"); code != exitRefused || !strings.Contains(stderr, "--role community") {
		t.Errorf("node status on a user's daemon: exit %d, %q", code, stderr)
	}
}

// TestMailboxNone: who switches mailboxes off has none and is told of none.
func TestMailboxNone(t *testing.T) {
	n, nodes := newMailNetwork(t)
	a := mailPerson(n, nodes, "a", "ann")
	a.stop()
	a.up("--mailbox", "none")
	var list []mailboxJSON
	a.decode(&list, "mailbox", "list")
	for _, m := range list {
		if m.State != "leaving" {
			t.Errorf("a mailbox is %+v", m)
		}
	}
	if s := a.status(); s.Mailboxes == nil || s.Mailboxes.Mode != "none" {
		t.Errorf("status says %+v", s.Mailboxes)
	}
	if out := a.must("mailbox", "list"); !strings.Contains(out, "kith up --home "+a.dir+" --mailbox auto") {
		t.Errorf("mailbox list prints %q", out)
	}
	if code, _, stderr := a.cli("mailbox", "add", nodes[0].ready.Listen[0]); code != exitRefused || !strings.Contains(stderr, "--mailbox auto") {
		t.Errorf("mailbox add: exit %d, %q", code, stderr)
	}
}

// TestHeldByNobody: who waits until a message is held, and has or meets somebody without
// mailboxes, is told who that is.
func TestHeldByNobody(t *testing.T) {
	n, nodes := newMailNetwork(t)
	a, b := mailPerson(n, nodes, "a", "ann"), n.home("b", "--name", "ben", "--listen", "/ip4/127.0.0.1/tcp/0", "--mailbox", "none", "--bootstrap", nodes[0].ready.Listen[0])
	b.up()
	a.boxesWork(3)
	n.meet(a, "ann", b, "ben")
	for _, test := range []struct {
		from, to *home
		name     string
		want     string
		note     bool
	}{
		{b, a, "ann", "this daemon uses none, by --mailbox none; kith down --home " + b.dir, true},
		{a, b, "ben", "was left at no mailbox: ben has told of none", false},
	} {
		test.to.stop()
		code, _, stderr := test.from.cli("send", test.name, "are you there?", "--wait", "held", "--timeout", "100ms")
		if note := strings.Contains(stderr, "Waiting until it is delivered"); code != exitTimeout || !strings.Contains(stderr, test.want) || note != test.note {
			t.Errorf("to %s: exit %d, %q, want %q", test.name, code, stderr, test.want)
		}
		test.to.up()
	}
	var sent struct{ ID string }
	b.decode(&sent, "send", "ann", "where is your mail?")
	b.until("the trace says how many mailboxes there are", func() bool {
		var trace struct{ Devices []struct{ Mailboxes int } }
		b.decode(&trace, "trace", sent.ID)
		return len(trace.Devices) == 1 && trace.Devices[0].Mailboxes == 3
	})
}

// TestQuotaReached: a sender is told that the mailboxes have no room, and the
// message waits and arrives all the same.
func TestQuotaReached(t *testing.T) {
	n, nodes := newMailNetwork(t)
	for _, node := range nodes {
		node.must("node", "set", "--box-quota", "128KiB")
	}
	a, b := mailPerson(n, nodes, "a", "ann"), mailPerson(n, nodes, "b", "ben")
	a.boxesWork(3)
	n.meet(a, "ann", b, "ben")
	a.stop()
	var last struct{ ID string }
	for i := range 4 {
		b.decode(&last, "send", "ann", strings.Repeat(fmt.Sprint(i), 60_000))
	}
	b.until("the sender is told", func() bool { return strings.Contains(b.must("trace", last.ID), "full") })
	a.up()
	a.until("all have arrived", func() bool { return len(a.read("ben")) == 2+4 })
}
