package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
)

const (
	demoNodes = 3
	// demoTime bounds the scripted demo.
	demoTime = 55 * time.Second
	// demoStart bounds the start of one process.
	demoStart = 10 * time.Second
	demoTalk  = 20  // texts that alternate, each waiting for its delivery
	demoAway  = 20  // texts in each direction around the kill
	demoBurst = 512 // texts sent as fast as they are taken
	demoApart = 10  // texts in each direction while the two are never there together
)

func (k *kith) demoCmd() *cobra.Command {
	var once bool
	c := &cobra.Command{
		Use:   "demo [--once]",
		Short: "Try a whole network on this machine: three community nodes, two people",
		Long: `Start three community nodes and two people, alice and bob, each a process of its
own with a temporary home, and let the two meet by an invite. Then bob leaves, alice
writes and leaves too, and bob comes back and reads what the community nodes have
kept for him. All of it is what kith up runs, on 127.0.0.1. Ctrl-C ends the demo
and removes everything.

With --once the two have a scripted conversation, in the middle of which bob is
killed and started again, and at the end of which they are never there together.
The command prints what was sent, received and measured, and exits with 0 only if everything arrived exactly once and in order.`,
	}
	c.Flags().BoolVar(&once, "once", false, "run the scripted conversation and end")
	return k.command(c, 0, 0, func(ctx context.Context, _ []string) error {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		dir, err := os.MkdirTemp("", "kith-demo-")
		if err != nil {
			return fmt.Errorf("make the demo's folder: %w", err)
		}
		d := &demo{k: k, exe: exe, dir: dir}
		defer d.close()
		if once {
			bound, cancel := context.WithTimeout(ctx, demoTime)
			defer cancel()
			return d.once(bound)
		}
		return d.leave(ctx)
	})
}

// demo is a network of processes under one folder.
type demo struct {
	k          *kith
	exe, dir   string
	nodes      []*process
	alice, bob *process
	report     demoReport
}

// process is one kith up.
type process struct {
	name, home string
	cmd        *exec.Cmd
	stdin      io.Closer // closing it ends the process; so does our own end
	stderr     *tail
	exited     chan struct{}
	client     *api.Client
	api        string
	listen     []string
	started    time.Duration // from exec to ready
}

// tail keeps the end of what a process says, for the error message.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 1024; over > 0 {
		t.buf = t.buf[over:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}

// start runs kith up in the home called name and returns when it is ready.
func (d *demo) start(ctx context.Context, name string, args ...string) (*process, error) {
	p := &process{name: name, home: filepath.Join(d.dir, name), stderr: &tail{}, exited: make(chan struct{})}
	args = append([]string{
		"up", "--json", "--until-eof", "--home", p.home,
		"--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--listen", "/ip4/127.0.0.1/tcp/0",
	}, args...)
	p.cmd = exec.Command(d.exe, args...) //nolint:noctx // it ends with its stdin, gently
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KITH_") && !strings.HasPrefix(v, "KITH_TEST_") })
	p.cmd.Stderr = p.stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.stdin = in
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	ready := make(chan bool, 1)
	go func() {
		ready <- p.readStages(out)
		_, _ = io.Copy(io.Discard, out)
		_ = p.cmd.Wait() // how it ended shows in its messages
		close(p.exited)
	}()
	limit := time.NewTimer(demoStart)
	defer limit.Stop()
	ok := false
	select {
	case ok = <-ready:
	case <-limit.C:
	case <-ctx.Done():
	}
	if !ok {
		p.kill()
		return nil, errors.Join(fmt.Errorf("%s did not start: %s", name, p.stderr), ctx.Err())
	}
	p.started = time.Since(began)
	p.client = api.NewClient(p.api)
	return p, nil
}

// readStages reads what kith up --json prints, up to the line that says ready.
func (p *process) readStages(out io.Reader) bool {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var stage struct {
			Event  string   `json:"event"`
			API    string   `json:"api"`
			Listen []string `json:"listen"`
		}
		if json.Unmarshal(lines.Bytes(), &stage) == nil && stage.Event == "ready" {
			p.api, p.listen = stage.API, stage.Listen
			return true
		}
	}
	return false
}

// kill ends the process as a power cut would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.exited
	if p.client != nil {
		p.client.Close()
	}
}

// leave ends the process as kith down would. It may have ended by itself.
func (p *process) leave() {
	p.stdin.Close()
	limit := time.NewTimer(stopTime + time.Second)
	defer limit.Stop()
	select {
	case <-p.exited:
	case <-limit.C:
	}
	p.kill()
}

// close ends every process and removes the folder.
func (d *demo) close() {
	var ending sync.WaitGroup
	for _, p := range append(slices.Clone(d.nodes), d.alice, d.bob) {
		if p == nil {
			continue
		}
		ending.Go(p.leave)
	}
	ending.Wait()
	if err := os.RemoveAll(d.dir); err != nil {
		d.k.notef("The demo's folder could not be removed: %v", err)
	}
}

// step announces a step and says how long it took.
func (d *demo) step(what string, f func() error) error {
	began := time.Now()
	if !d.k.quiet && !d.k.json {
		fmt.Fprintf(d.k.stdout, "%-58s", what+" …")
	}
	err := f()
	if !d.k.quiet && !d.k.json {
		if err != nil {
			fmt.Fprintln(d.k.stdout, " failed")
		} else {
			fmt.Fprintf(d.k.stdout, "%7.2f s\n", time.Since(began).Seconds())
		}
	}
	return err
}

// build starts everybody and lets the two meet.
func (d *demo) build(ctx context.Context) error {
	var ways []string
	err := d.step("Starting three community nodes", func() error {
		for i := range demoNodes {
			p, err := d.start(ctx, fmt.Sprintf("node%d", i+1), append([]string{"--role", "community"}, ways...)...)
			if err != nil {
				return err
			}
			d.nodes = append(d.nodes, p)
			ways = append(ways, "--bootstrap", p.listen[0])
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = d.step("Starting alice and bob", func() (err error) {
		if d.alice, err = d.person(ctx, "alice", ways); err != nil {
			return err
		}
		d.bob, err = d.person(ctx, "bob", ways)
		return err
	})
	if err != nil {
		return err
	}
	err = d.step("Alice invites, bob accepts", func() error { return d.meet(ctx) })
	if err != nil {
		return err
	}
	ab := &direction{From: "alice", To: "bob", sender: d.alice, reader: d.bob}
	ba := &direction{From: "bob", To: "alice", sender: d.bob, reader: d.alice}
	d.report.Directions = []*direction{ab, ba}
	return d.step("Both have mailboxes at the community nodes", func() error {
		return errors.Join(d.alice.boxed(ctx), d.bob.boxed(ctx))
	})
}

// boxed returns when a person's mailboxes work and contacts were told of them.
func (p *process) boxed(ctx context.Context) error {
	for {
		s, err := p.client.Status(ctx, &apiv1.StatusRequest{})
		if err != nil {
			return err
		}
		if s.GetMailboxes().GetHealthy() == demoNodes && s.Outbox == 0 {
			return nil
		}
		if err := pause(ctx, readyEvery); err != nil {
			return fmt.Errorf("the mailboxes of %s do not work: %w", p.name, err)
		}
	}
}

// back starts a person again.
func (d *demo) back(ctx context.Context, name string) error {
	var ways []string
	for _, p := range d.nodes {
		ways = append(ways, "--bootstrap", p.listen[0])
	}
	p, err := d.person(ctx, name, ways)
	if err != nil {
		return err
	}
	d.report.Ready = max(d.report.Ready, ms(p.started))
	if name == d.alice.name {
		d.alice = p
	} else {
		d.bob = p
	}
	for _, x := range d.report.Directions {
		if x.From == name {
			x.sender = p
		} else {
			x.reader = p
		}
	}
	return nil
}

// absence is texts that were written and read while the two were never there
// together.
type absence struct {
	From      string  `json:"from"`
	To        string  `json:"to"`
	Texts     int     `json:"texts"`
	Held      int32   `json:"held"` // mailboxes that had signed for the last text when its sender left
	Of        int32   `json:"of"`
	HeldAfter float64 `json:"held_ms"` // from sending until all were held
	ReadAfter float64 `json:"read_ms"` // from the reader's being ready until all could be read
}

// apart lets one person, who is there alone, write and leave, and the other come
// and read.
func (d *demo) apart(ctx context.Context, x *direction, texts []string) error {
	x.reader.leave()
	before := len(x.messages)
	a, began := &absence{From: x.From, To: x.To, Texts: len(texts)}, time.Now()
	if err := x.post(ctx, texts); err != nil {
		return err
	}
	mine := x.messages[len(x.messages)-len(texts):]
	if err := x.reach(ctx, mine, "held"); err != nil {
		return err
	}
	a.HeldAfter = ms(time.Since(began))
	trace, err := x.sender.client.Trace(ctx, &apiv1.TraceRequest{Id: mine[len(mine)-1].Id})
	if err != nil {
		return err
	}
	for _, device := range trace.Devices {
		a.Held, a.Of = device.GetHolding().GetHeld(), device.GetHolding().GetOf()
	}
	x.sender.leave()
	if err := d.back(ctx, x.To); err != nil {
		return err
	}
	began = time.Now()
	for {
		now, err := x.shown(ctx)
		if err != nil {
			return err
		}
		if len(now) >= before+len(texts) {
			break
		}
		if err := pause(ctx, readyEvery); err != nil {
			return fmt.Errorf("%s to %s, through mailboxes: %w", x.From, x.To, err)
		}
	}
	a.ReadAfter = ms(time.Since(began))
	d.report.Apart = append(d.report.Apart, a)
	return nil
}

func (d *demo) person(ctx context.Context, name string, ways []string) (*process, error) {
	return d.start(ctx, name, append([]string{"--name", name}, ways...)...)
}

func (d *demo) meet(ctx context.Context) error {
	began := time.Now()
	inv, err := d.alice.client.CreateInvite(ctx, &apiv1.CreateInviteRequest{Name: "bob"})
	if err != nil {
		return err
	}
	res, err := d.bob.client.AcceptInvite(ctx, &apiv1.AcceptInviteRequest{Link: inv.GetInvite().GetLink(), Name: "alice"})
	if err != nil {
		return err
	}
	if _, err := waitEstablished(ctx, d.bob.client, res.GetContact()); err != nil {
		return err
	}
	for {
		contacts, err := d.alice.client.ListContacts(ctx, &apiv1.ListContactsRequest{})
		if err != nil {
			return err
		}
		if len(contacts.Contacts) == 1 && contacts.Contacts[0].State == "established" {
			if c := contacts.Contacts[0]; c.Name != "bob" {
				_, err = d.alice.client.RenameContact(ctx, &apiv1.RenameContactRequest{Contact: c.Id, Name: "bob"})
			}
			d.report.Meeting = ms(time.Since(began))
			return err
		}
		if err := pause(ctx, readyEvery); err != nil {
			return err
		}
	}
}

// leave builds the network and leaves it to the user.
func (d *demo) leave(ctx context.Context) error {
	if err := d.build(ctx); err != nil {
		return err
	}
	err := d.step("Bob leaves, alice writes and leaves, bob comes and reads", func() error {
		return d.apart(ctx, d.report.Directions[0], []string{"Hello, bob. You are away, and so will I be when you read this."})
	})
	if err != nil {
		return err
	}
	if err := d.step("Alice is back too", func() error { return d.back(ctx, "alice") }); err != nil {
		return err
	}
	program := "kith"
	if path, err := exec.LookPath(program); err != nil || path != d.exe {
		program = word(d.exe)
	}
	d.k.print(struct {
		Event string `json:"event"`
		Alice string `json:"alice"`
		Bob   string `json:"bob"`
	}{"ready", d.alice.home, d.bob.home}, func(w io.Writer) {
		fmt.Fprintf(w, `
Alice and bob are contacts now. In other terminals, try:

  %[1]s read --home %[3]s alice
  %[1]s mailbox list --home %[3]s
  %[1]s watch --home %[3]s
  %[1]s send --home %[2]s bob 'Hello, bob' --wait delivered
  %[1]s send --home %[3]s alice 'Hello, alice'
  %[1]s read --home %[2]s bob
  %[1]s verify --home %[2]s bob
  %[1]s ping --home %[3]s alice
  %[1]s status --home %[3]s

Ctrl-C ends all of it and removes the homes.
`, program, word(d.alice.home), word(d.bob.home))
	})
	<-ctx.Done()
	return nil
}

// demoReport is what the scripted conversation brought.
type demoReport struct {
	OK         bool         `json:"ok"`
	Processes  int          `json:"processes"`
	Ready      float64      `json:"ready_ms"`   // the slowest start
	Meeting    float64      `json:"meeting_ms"` // from making the invite until both are contacts
	Returned   float64      `json:"returned_ms"`
	TextsPerS  float64      `json:"burst_texts_per_s"`
	Directions []*direction `json:"directions"`
	Apart      []*absence   `json:"apart"` // through mailboxes
	Seconds    float64      `json:"seconds"`
}

// direction is one person's texts to the other.
type direction struct {
	From       string  `json:"from"`
	To         string  `json:"to"`
	Sent       int     `json:"sent"`
	Received   int     `json:"received"`
	Delivered  int     `json:"delivered"` // as the sender's ledger has it
	Lost       int     `json:"lost"`
	Duplicate  int     `json:"duplicate"`
	OutOfOrder int     `json:"out_of_order"`
	Median     float64 `json:"median_ms"` // send to delivered, one at a time
	P95        float64 `json:"p95_ms"`

	sender, reader *process
	texts          []string
	messages       []*apiv1.Message
	times          []time.Duration
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// once is the scripted demo.
func (d *demo) once(ctx context.Context) error {
	began := time.Now()
	if err := d.build(ctx); err != nil {
		return err
	}
	for _, p := range append(slices.Clone(d.nodes), d.alice, d.bob) {
		d.report.Ready = max(d.report.Ready, ms(p.started))
		d.report.Processes++
	}
	ab, ba := d.report.Directions[0], d.report.Directions[1]

	err := d.step(fmt.Sprintf("They talk: %d texts, one after another", demoTalk), func() error {
		for i := range demoTalk {
			if err := [2]*direction{ab, ba}[i%2].say(ctx, fmt.Sprintf("Text %d of a conversation", i+1)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = d.step(fmt.Sprintf("Alice sends %d texts at once", demoBurst), func() error {
		began := time.Now()
		for batch := range slices.Chunk(numbered("Burst", demoBurst), api.MaxTexts) {
			if err := ab.post(ctx, batch); err != nil {
				return err
			}
		}
		err := ab.settle(ctx)
		d.report.TextsPerS = demoBurst / time.Since(began).Seconds()
		return err
	})
	if err != nil {
		return err
	}
	err = d.step("Bob is killed; both sides write; bob starts again", func() error {
		if err := ba.post(ctx, numbered("Just before the kill", demoAway)); err != nil {
			return err
		}
		d.bob.kill()
		if err := ab.post(ctx, numbered("While bob is away", demoAway)); err != nil {
			return err
		}
		began := time.Now()
		if err := d.back(ctx, "bob"); err != nil {
			return err
		}
		err := errors.Join(ab.settle(ctx), ba.settle(ctx))
		d.report.Returned = ms(time.Since(began))
		return err
	})
	if err != nil {
		return err
	}
	err = d.step("Never there together: alice writes, bob reads", func() error {
		if err := d.bob.boxed(ctx); err != nil {
			return err
		}
		return d.apart(ctx, ab, numbered("While bob is off", demoApart))
	})
	if err != nil {
		return err
	}
	err = d.step("Never there together: bob answers, alice reads", func() error {
		// Alice has left already: bob is alone.
		return d.apart(ctx, ba, numbered("While alice is off", demoApart))
	})
	if err != nil {
		return err
	}
	err = d.step("Both are back, talk on, and the histories are compared", func() error {
		if err := d.back(ctx, "bob"); err != nil {
			return err
		}
		if err := errors.Join(ab.settle(ctx), ba.settle(ctx)); err != nil {
			return err
		}
		for i := range demoTalk {
			if err := [2]*direction{ba, ab}[i%2].say(ctx, fmt.Sprintf("Text %d after the return", i+1)); err != nil {
				return err
			}
		}
		return errors.Join(ab.compare(ctx), ba.compare(ctx))
	})
	if err != nil {
		return err
	}
	d.report.Seconds = time.Since(began).Seconds()
	d.report.OK = ab.good() && ba.good()
	d.k.print(d.report, d.writeReport)
	if !d.report.OK {
		return &api.Error{Code: api.CodeRefused, Message: "not everything arrived exactly once and in order", Hint: "please report this with the table above"}
	}
	return nil
}

func numbered(what string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s: %d of %d", what, i+1, n)
	}
	return out
}

// post queues texts.
func (x *direction) post(ctx context.Context, texts []string) error {
	res, err := x.sender.client.Send(ctx, &apiv1.SendRequest{Conversation: x.To, Texts: texts})
	if err != nil {
		return fmt.Errorf("%s to %s: %w", x.From, x.To, err)
	}
	x.texts = append(x.texts, texts...)
	x.messages = append(x.messages, res.Messages...)
	return nil
}

// say sends one text and measures until its receipt is here.
func (x *direction) say(ctx context.Context, text string) error {
	began := time.Now()
	res, err := x.sender.client.Send(ctx, &apiv1.SendRequest{Conversation: x.To, Texts: []string{text}})
	if err != nil {
		return fmt.Errorf("%s to %s: %w", x.From, x.To, err)
	}
	l := watchLedger(ctx, x.sender.client, res.After)
	defer l.stop()
	if err := l.wait(ctx, res.Messages[0], "delivered"); err != nil {
		return fmt.Errorf("%s to %s: %w", x.From, x.To, err)
	}
	x.times = append(x.times, time.Since(began))
	x.texts = append(x.texts, text)
	x.messages = append(x.messages, res.Messages...)
	return nil
}

// settle waits until everything that was posted is delivered.
func (x *direction) settle(ctx context.Context) error {
	return x.reach(ctx, x.messages, "delivered")
}

// shown are the sender's messages as the reader sees them.
func (x *direction) shown(ctx context.Context) ([]*apiv1.Message, error) {
	all, err := lastMessages(ctx, x.reader.client, x.From, 1<<20)
	return slices.DeleteFunc(all, (*apiv1.Message).GetFromMe), err
}

// reach waits until messages have come as far as a state.
func (x *direction) reach(ctx context.Context, messages []*apiv1.Message, state string) error {
	l := watchLedger(ctx, x.sender.client, 0)
	defer l.stop()
	for _, m := range messages {
		if err := l.wait(ctx, m, state); err != nil {
			return fmt.Errorf("%s to %s: %w", x.From, x.To, err)
		}
	}
	return nil
}

// compare reads what the other side shows and counts what differs from what
// was sent.
func (x *direction) compare(ctx context.Context) error {
	shown, err := x.shown(ctx)
	if err != nil {
		return err
	}
	place := map[string]int{}
	for i, m := range x.messages {
		place[m.Id] = i
	}
	seen := map[string]bool{}
	last := -1
	for _, m := range shown {
		x.Received++
		i, ours := place[m.Id]
		switch {
		case !ours || m.Text != x.texts[i] || seen[m.Id]:
			x.Duplicate++
		case i < last:
			x.OutOfOrder++
		default:
			last = i
		}
		seen[m.Id] = true
	}
	own, err := lastMessages(ctx, x.sender.client, x.To, 1<<20)
	if err != nil {
		return err
	}
	for _, m := range own {
		if m.FromMe && (m.State == "delivered" || m.State == "read") {
			x.Delivered++
		}
	}
	x.Sent = len(x.messages)
	for _, m := range x.messages {
		if !seen[m.Id] {
			x.Lost++
		}
	}
	slices.Sort(x.times)
	if n := len(x.times); n > 0 {
		x.Median, x.P95 = ms(x.times[n/2]), ms(x.times[n*95/100])
	}
	return nil
}

func (x *direction) good() bool {
	return x.Sent > 0 && x.Received == x.Sent && x.Delivered == x.Sent && x.Lost == 0 && x.Duplicate == 0 && x.OutOfOrder == 0
}

func (d *demo) writeReport(w io.Writer) {
	row := func(what string, value func(*direction) string) []string {
		out := []string{what}
		for _, x := range d.report.Directions {
			out = append(out, value(x))
		}
		return out
	}
	count := func(what string, n func(*direction) int) []string {
		return row(what, func(x *direction) string { return fmt.Sprint(n(x)) })
	}
	fmt.Fprintln(w)
	table(w,
		row("", func(x *direction) string { return x.From + " to " + x.To }),
		count("texts sent", func(x *direction) int { return x.Sent }),
		count("texts received", func(x *direction) int { return x.Received }),
		count("receipts", func(x *direction) int { return x.Delivered }),
		count("lost", func(x *direction) int { return x.Lost }),
		count("shown twice or altered", func(x *direction) int { return x.Duplicate }),
		count("out of order", func(x *direction) int { return x.OutOfOrder }),
		row("send to delivered, median", func(x *direction) string { return fmt.Sprintf("%.1f ms", x.Median) }),
		row("send to delivered, 95th percentile", func(x *direction) string { return fmt.Sprintf("%.1f ms", x.P95) }),
	)
	fmt.Fprintln(w)
	rows := [][]string{{"never there together", "texts", "held by", "held after", "readable after", "lost"}}
	for i, a := range d.report.Apart {
		rows = append(rows, []string{
			fmt.Sprintf("%s alone, then %s alone", a.From, a.To), fmt.Sprint(a.Texts), fmt.Sprintf("%d of %d nodes", a.Held, a.Of),
			fmt.Sprintf("%.0f ms", a.HeldAfter), fmt.Sprintf("%.0f ms", a.ReadAfter), fmt.Sprint(d.report.Directions[i].Lost),
		})
	}
	table(w, rows...)
	fmt.Fprintln(w)
	table(w,
		[]string{"processes", fmt.Sprint(d.report.Processes)},
		[]string{"start to ready, slowest", fmt.Sprintf("%.0f ms", d.report.Ready)},
		[]string{"invite to contacts", fmt.Sprintf("%.0f ms", d.report.Meeting)},
		[]string{"burst, end to end", fmt.Sprintf("%.0f texts/s", d.report.TextsPerS)},
		[]string{"restart after kill to all delivered", fmt.Sprintf("%.0f ms", d.report.Returned)},
		[]string{"total", fmt.Sprintf("%.1f s", d.report.Seconds)},
	)
}
