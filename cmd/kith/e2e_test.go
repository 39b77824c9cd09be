package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// The tests in e2e_*_test.go run kith as people do: daemons in processes of
// their own, started by hand, on this machine's loopback.

// e2eTime bounds whatever is waited for. It is long because the machine may be
// busy; nothing that works comes near it.
const e2eTime = 60 * time.Second

// soak says whether the tests that can go on for longer shall. Like all that tests
// are told by the environment it is read before TestMain clears that.
var soak = os.Getenv("KITH_SOAK") != ""

// network is a community node and whoever was started beside it.
type network struct {
	t     testing.TB
	dir   string
	node  *home
	calm  bool         // its daemons do not log at debug level
	enter func(func()) // runs a function where its processes are to start; nil: here
}

// home is one --home and the daemon that runs on it, if one does.
type home struct {
	t    testing.TB
	n    *network
	dir  string
	args []string // of kith up
	log  string   // the standard error of all its daemons
	ns   string   // the network namespace they are in; empty: this one

	cmd    *exec.Cmd
	stdin  io.Closer
	exited chan error
	took   time.Duration // from exec to ready
	ready  struct {
		Account string
		API     string
		Listen  []string
		Bridge  string
	}
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{t: t, dir: shortDir(t)}
	n.node = n.home("n", "--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1")
	n.node.up()
	return n
}

// home prepares a home; nothing runs on it yet.
func (n *network) home(name string, args ...string) *home {
	h := &home{t: n.t, n: n, dir: filepath.Join(n.dir, name), log: filepath.Join(n.dir, name+".log"), args: args}
	n.t.Cleanup(h.kill)
	return h
}

// person starts a user's daemon as one does by hand.
func (n *network) person(dir, name string) *home {
	n.t.Helper()
	h := n.home(dir, "--name", name, "--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1",
		"--bootstrap", n.node.ready.Listen[0])
	h.up()
	return h
}

// pair starts two people who are contacts and have each heard from the other.
func (n *network) pair(a, b string) (*home, *home) {
	n.t.Helper()
	ha, hb := n.person("a", a), n.person("b", b)
	n.meet(ha, a, hb, b)
	return ha, hb
}

func (n *network) meet(ha *home, a string, hb *home, b string) {
	n.t.Helper()
	hb.must("accept", ha.invite("--name", b), "--name", a, "--wait", "--timeout", "60s")
	hb.must("send", a, "the first text", "--wait", "delivered", "--timeout", "60s")
	ha.must("rename", ha.onlyContact(), b)
	ha.must("send", b, "the second text", "--wait", "delivered", "--timeout", "60s")
}

// up starts the daemon and returns when it is ready.
func (h *home) up(args ...string) {
	h.t.Helper()
	if err := h.start(args...); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) start(args ...string) error {
	log, err := os.OpenFile(h.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args = append([]string{"up", "--json", "--until-eof", "--home", h.dir}, append(args, h.args...)...)
	if !h.n.calm {
		args = append(args, "-v")
	}
	h.cmd = exec.Command(os.Args[0], args...)
	if h.ns != "" {
		h.cmd = exec.Command("ip", append([]string{"netns", "exec", h.ns, os.Args[0]}, args...)...)
	}
	h.cmd.Env = append(os.Environ(), "KITH_TEST_MAIN=1")
	h.cmd.Stderr = log
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	began := time.Now()
	if h.n.enter == nil {
		err = h.cmd.Start()
	} else {
		h.n.enter(func() { err = h.cmd.Start() })
	}
	if err != nil {
		return err
	}
	exited, cmd := make(chan error, 1), h.cmd
	h.exited = exited
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var stage struct{ Event string }
		if err := json.Unmarshal(lines.Bytes(), &stage); err != nil {
			return fmt.Errorf("kith up --json prints %q", lines.Text())
		}
		if stage.Event == "ready" {
			h.took = time.Since(began)
			go func() {
				_, _ = io.Copy(io.Discard, out)
				exited <- cmd.Wait()
			}()
			return json.Unmarshal(lines.Bytes(), &h.ready)
		}
	}
	err = h.cmd.Wait()
	h.cmd = nil
	text, _ := os.ReadFile(h.log)
	return fmt.Errorf("kith up in %s ended: %w\n%s", h.dir, err, text)
}

// kill ends the daemon as a power cut would. It may not run.
func (h *home) kill() {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Kill() // it may have ended by itself
	<-h.exited
	h.stdin.Close()
	h.cmd = nil
}

// stop ends the daemon by SIGTERM and says how long that took.
func (h *home) stop() time.Duration {
	h.t.Helper()
	began := time.Now()
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	select {
	case err := <-h.exited:
		if err != nil {
			h.t.Errorf("the daemon of %s ended after SIGTERM with %v", h.dir, err)
		}
	case <-time.After(2 * stopTime):
		h.t.Fatalf("the daemon of %s does not stop", h.dir)
	}
	h.stdin.Close()
	h.cmd = nil
	return time.Since(began)
}

// cli runs one command line on this home.
func (h *home) cli(args ...string) (code int, stdout, stderr string) {
	h.t.Helper()
	return cli(h.t, "", append([]string{"--home", h.dir}, args...)...)
}

// must runs a command that has to succeed and returns what it prints.
func (h *home) must(args ...string) string {
	h.t.Helper()
	code, stdout, stderr := h.cli(args...)
	if code != exitOK {
		h.t.Fatalf("kith %s: exit %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// decode runs a command with --json and decodes the object it prints.
func (h *home) decode(v any, args ...string) {
	h.t.Helper()
	if out := h.must(append(args, "--json")...); json.Unmarshal([]byte(out), v) != nil {
		h.t.Fatalf("kith %s --json prints %q", strings.Join(args, " "), out)
	}
}

func (h *home) invite(args ...string) (link string) {
	h.t.Helper()
	var inv struct{ Link string }
	h.decode(&inv, append([]string{"invite"}, args...)...)
	return inv.Link
}

// onlyContact returns the id of the one contact, once there is one that is
// established.
func (h *home) onlyContact() (id string) {
	h.t.Helper()
	h.until("a contact is established", func() bool {
		var list []contactJSON
		h.decode(&list, "contacts")
		if len(list) == 1 && list[0].State == "established" {
			id = list[0].ID
		}
		return id != ""
	})
	return id
}

// read returns the whole conversation.
func (h *home) read(contact string) []messageJSON {
	h.t.Helper()
	return decodeLines[messageJSON](h.t, h.must("read", contact, "--last", "1000000", "--json"))
}

func (h *home) status() (s statusJSON) {
	h.t.Helper()
	h.decode(&s, "status")
	return s
}

// until waits for something that no command can wait for.
func (h *home) until(what string, ok func() bool) {
	h.t.Helper()
	limit := time.NewTimer(e2eTime)
	defer limit.Stop()
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			h.t.Fatalf("it did not happen in %v that %s", e2eTime, what)
		}
	}
}

func decodeLines[T any](t testing.TB, out string) (list []T) {
	t.Helper()
	for in := json.NewDecoder(strings.NewReader(out)); ; {
		var v T
		switch err := in.Decode(&v); err {
		case nil:
			list = append(list, v)
		case io.EOF:
			return list
		default:
			t.Fatalf("%v in %q", err, out)
		}
	}
}

// quiet fails the test if the daemons' logs hold any of these words, or
// anything that looks like an address, a peer or an invite.
func (n *network) quiet(secrets ...string) {
	n.t.Helper()
	logs, err := filepath.Glob(filepath.Join(n.dir, "*.log"))
	if err != nil || len(logs) == 0 {
		n.t.Fatalf("the logs are %v, %v", logs, err)
	}
	secrets = append(secrets, "127.0.0.1", "/ip4/", "/p2p/", "12D3Koo", "kith:")
	for _, name := range logs {
		text, err := os.ReadFile(name)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, line := range strings.Split(string(text), "\n") {
			for _, s := range secrets {
				if s != "" && strings.Contains(strings.ToLower(line), strings.ToLower(s)) {
					n.t.Errorf("the log of %s holds %q: %s", filepath.Base(name), s, line)
				}
			}
			if strings.Contains(line, "DATA RACE") {
				n.t.Errorf("the log of %s: %s", filepath.Base(name), text)
			}
		}
	}
}

// TestTwoHomes is the main job by hand: a community node and two homes, an
// invite, texts both ways, and everything one looks at meanwhile.
func TestTwoHomes(t *testing.T) {
	n := newNetwork(t)
	// Names and texts that nothing else in a log could look like.
	a, b := n.person("a", "Quendolin"), n.person("b", "Ferdinandus")
	link := a.invite("--name", "Ferdinandus")
	var accepted struct{ Contact contactJSON }
	b.decode(&accepted, "accept", link, "--name", "Quendolin", "--wait", "--timeout", "60s")
	if accepted.Contact.State != "established" || accepted.Contact.Name != "Quendolin" {
		t.Errorf("accept --wait returns %+v", accepted.Contact)
	}
	var sent struct{ ID, State string }
	b.decode(&sent, "send", "Quendolin", "greetings from the marmalade", "--wait", "delivered", "--timeout", "60s")
	if sent.State != "delivered" {
		t.Errorf("send --wait delivered returns %+v", sent)
	}
	contact := a.onlyContact()
	a.must("rename", contact, "Ferdinandus")
	var back struct{ ID, State string }
	a.decode(&back, "send", "Ferdinandus", "the umbrella replies", "--wait", "delivered", "--timeout", "60s")

	// Both read the same.
	for _, x := range []struct {
		h    *home
		with string
	}{{a, "Ferdinandus"}, {b, "Quendolin"}} {
		got := x.h.read(x.with)
		if len(got) != 2 || got[0].ID != sent.ID || got[0].Text != "greetings from the marmalade" ||
			got[1].ID != back.ID || got[1].Text != "the umbrella replies" || got[0].FromMe == got[1].FromMe {
			t.Errorf("%s reads %+v", x.h.dir, got)
		}
	}
	// trace shows the way of a message.
	var tr struct {
		ID, State string
		Devices   []struct {
			State     string
			Delivered *int64
			Attempts  []struct{ Road, Result string }
		}
	}
	a.decode(&tr, "trace", back.ID[:12])
	if tr.ID != back.ID || tr.State != "delivered" || len(tr.Devices) != 1 || tr.Devices[0].Delivered == nil ||
		len(tr.Devices[0].Attempts) == 0 || tr.Devices[0].Attempts[0].Road == "" {
		t.Errorf("trace returns %+v", tr)
	}
	// ping shows the road, which may be a relay at first.
	var p struct {
		Ms            float64
		Road, Address string
	}
	b.until("the road is direct", func() bool {
		b.decode(&p, "ping", "Quendolin")
		return p.Road == "direct"
	})
	if p.Ms <= 0 || !strings.HasPrefix(p.Address, "/ip4/127.0.0.1/") {
		t.Errorf("ping returns %+v", p)
	}
	// verify shows both the same number.
	var va, vb struct{ Number, QR string }
	a.decode(&va, "verify", "Ferdinandus")
	b.decode(&vb, "verify", "Quendolin")
	digits := strings.ReplaceAll(va.Number, " ", "")
	if va.Number != vb.Number || len(digits) != 60 || strings.Trim(digits, "0123456789") != "" {
		t.Errorf("the safety numbers are %q and %q", va.Number, vb.Number)
	}
	a.must("verify", "Ferdinandus", "--yes")
	var list []contactJSON
	a.decode(&list, "contacts")
	if len(list) != 1 || !list[0].Verified {
		t.Errorf("after verify --yes: %+v", list)
	}
	// watch goes on where it was, event by event, across a kill -9.
	type event struct {
		ID   uint64
		Type string
		Data struct {
			Text   string
			FromMe bool `json:"from_me"`
		}
	}
	var seen []string
	var last uint64
	see := func(count int) {
		for len(seen) < count {
			for _, e := range decodeLines[event](t, b.must("watch", "--cursor", "bot", "--from", "start", "-n", "1", "--json", "--timeout", "60s")) {
				if e.ID <= last {
					t.Fatalf("event %d comes after %d", e.ID, last)
				}
				if last = e.ID; e.Type == "message" && !e.Data.FromMe {
					seen = append(seen, e.Data.Text)
				}
			}
		}
	}
	see(1)
	a.must("send", "Ferdinandus", "while the bot sleeps", "--wait", "delivered", "--timeout", "60s")
	b.kill()
	b.up()
	a.must("send", "Ferdinandus", "after the restart", "--wait", "delivered", "--timeout", "60s")
	see(3)
	want := []string{"the umbrella replies", "while the bot sleeps", "after the restart"}
	if strings.Join(seen, "|") != strings.Join(want, "|") {
		t.Errorf("the cursor sees %q, want %q", seen, want)
	}
	// A second daemon does not start, and one in another role is refused; SIGTERM ends the first one in the middle of a
	// conversation.
	if code, stdout, _ := a.cli("up"); code != exitOK || !strings.Contains(stdout, "kith runs already") {
		t.Errorf("a second kith up: exit %d, %q", code, stdout)
	}
	if code, _, stderr := a.cli("up", "--role", "community"); code != exitRefused || strings.Count(stderr, "\n") != 1 ||
		!strings.Contains(stderr, "as a user's") || !strings.Contains(stderr, "--home DIR") {
		t.Errorf("a second kith up: exit %d, %q", code, stderr)
	}
	client := api.NewClient(a.ready.API)
	defer client.Close()
	if _, err := client.Send(t.Context(), &apiv1.SendRequest{Conversation: "Ferdinandus", Texts: numbered("as the light goes out", api.MaxTexts)}); err != nil {
		t.Fatal(err)
	}
	if took := a.stop(); took > stopTime {
		t.Errorf("SIGTERM took %v, want at most %v", took, stopTime)
	}
	a.up()
	b.until("everything has arrived after the restart", func() bool { return len(b.read("Quendolin")) == 4+api.MaxTexts })
	n.quiet("Quendolin", "Ferdinandus", "marmalade", "umbrella", "sleeps", "as the light", "first text", link,
		a.ready.Account, b.ready.Account, sent.ID[:8], back.ID[:8], contact, accepted.Contact.ID)
}

// TestInviterOffline accepts an invite and writes while its maker is away.
func TestInviterOffline(t *testing.T) {
	n := newNetwork(t)
	a, b := n.person("a", "ann"), n.person("b", "ben")
	link := a.invite()
	a.until("the invite's records are with the community node", func() bool {
		s := a.status()
		return s.PublishGoal > 0 && s.Published == s.PublishGoal
	})
	a.stop()
	var accepted struct{ Contact contactJSON }
	b.decode(&accepted, "accept", link, "--name", "ann")
	if accepted.Contact.State != "pending" || accepted.Contact.Devices != 1 {
		t.Fatalf("accept returns %+v: the keys are not found", accepted.Contact)
	}
	var sent struct{ ID, State string }
	b.decode(&sent, "send", "ann", "you are not there")
	if sent.State != "queued" {
		t.Errorf("send returns %+v", sent)
	}
	code, _, stderr := b.cli("send", "ann", "nor now", "--wait", "delivered", "--timeout", "300ms")
	if code != exitTimeout || !strings.Contains(stderr, "kith trace") {
		t.Errorf("send --wait delivered to nobody: exit %d, %q", code, stderr)
	}
	a.up()
	a.onlyContact()
	b.must("send", "ann", "now you are", "--wait", "delivered", "--timeout", "60s")
	var texts []string
	for _, m := range a.read(a.onlyContact()) {
		texts = append(texts, m.Text)
	}
	if got := strings.Join(texts, "|"); got != "you are not there|nor now|now you are" {
		t.Errorf("ann reads %q", got)
	}
	n.quiet("not there", "nor now", "now you are", link, sent.ID[:8])
}

// TestBatch sends many texts through the batch form.
func TestBatch(t *testing.T) {
	n := newNetwork(t)
	a, b := n.pair("ann", "ben")
	count := 2000
	if soak {
		count = 20_000
	}
	want := make([]string, count)
	for i := range want {
		want[i] = fmt.Sprintf("%-100s", fmt.Sprintf("line %d of a long file", i)) + "."
	}
	code, stdout, stderr := cli(t, strings.Join(want, "\n"), "--home", a.dir, "send", "ben", "--stdin", "--wait", "delivered", "--timeout", "120s", "--json")
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	sent := decodeLines[struct{ ID, State string }](t, stdout)
	got := b.read("ann")[2:]
	if len(sent) != count || len(got) != count {
		t.Fatalf("%d lines, %d sent, %d received", count, len(sent), len(got))
	}
	for i, m := range got {
		if m.Text != want[i] || m.ID != sent[i].ID || sent[i].State != "delivered" || m.Missing != 0 {
			t.Fatalf("text %d is %+v, sent as %+v", i, m, sent[i])
		}
	}
	n.quiet("long file")
}
