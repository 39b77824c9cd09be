package mailbox_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"

	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// soak says how often a test repeats: few times in the suite, many with
// KITH_SOAK=1.
func soak(few, many int) int {
	if os.Getenv("KITH_SOAK") != "" {
		return many
	}
	return few
}

// house is a service on a machine of a simulated network.
type house struct {
	*mailbox.Service
	t    *testing.T
	net  *nodetest.Network
	cfg  mailbox.Config
	host *transport.Host
	info peer.AddrInfo
	stop func()
}

// world runs f in a bubble with a service on machine 0.
func world(t *testing.T, l mailbox.Limits, f func(*testing.T, *house)) {
	t.Helper()
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		f(t, newHouse(t, n, l))
	})
}

func newHouse(t *testing.T, n *nodetest.Network, l mailbox.Limits) *house {
	t.Helper()
	h := &house{t: t, net: n}
	h.host = n.Host(t, transport.Config{Role: transport.Community, Memory: transport.CommunityMemory}, nodetest.IP(0))
	raw, err := h.host.Peerstore().PrivKey(h.host.ID()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	h.info = nodetest.AddrInfo(t, h.host)
	h.cfg = mailbox.Config{Path: filepath.Join(t.TempDir(), "mailbox.db"), Key: ed25519.PrivateKey(raw), Limits: l}
	h.start()
	t.Cleanup(func() { h.stop() })
	return h
}

// start opens the service and serves.
func (h *house) start() {
	h.t.Helper()
	s, err := mailbox.Open(h.t.Context(), h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.Service = s
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	h.host.SetStreamHandler(libp2p.ID(wire.Protocol), s.Handle)
	h.stop = func() {
		h.stop = func() {}
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("Run: %v", err)
		}
		if err := s.Close(); err != nil {
			h.t.Errorf("Close: %v", err)
		}
	}
}

// restart closes the service and opens it again.
func (h *house) restart() {
	h.t.Helper()
	h.stop()
	h.start()
}

// node is the service's transport key.
func (h *house) node() [32]byte { return [32]byte(h.cfg.Key.Public().(ed25519.PublicKey)) }

// client is a stream to a service.
type client struct {
	t     testing.TB
	net   network.Stream
	in    *transport.Reader
	node  [32]byte
	hello *wire.Hello
}

// dial opens a stream from a machine, under a peer id of its own.
func (h *house) dial(machine int) *client {
	h.t.Helper()
	host := h.net.Host(h.t, transport.Config{Role: transport.Errands}, nodetest.IP(machine))
	return h.dialFrom(host)
}

func (h *house) dialFrom(host *transport.Host) *client {
	h.t.Helper()
	c, err := dialFrom(h.t, host, h.info, h.node())
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func dialFrom(t testing.TB, host *transport.Host, info peer.AddrInfo, node [32]byte) (*client, error) {
	t.Helper()
	c, err := connect(host, info, node)
	if err == nil {
		c.t = t
	}
	return c, err
}

// connect opens a stream outside of a test.
func connect(host *transport.Host, info peer.AddrInfo, node [32]byte) (*client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := host.Connect(ctx, info); err != nil {
		return nil, err
	}
	s, err := host.NewStream(ctx, info.ID, libp2p.ID(wire.Protocol))
	if err != nil {
		return nil, err
	}
	c := &client{net: s, in: transport.NewReader(s), node: node}
	f, err := c.next()
	if err != nil {
		s.Reset()
		return nil, err
	}
	c.hello = f.(*wire.Hello)
	return c, nil
}

func (c *client) next() (wire.Frame, error) {
	c.in.SetIdle(11 * time.Minute)
	c.in.Begin()
	return wire.ReadAnswer(c.in.Reader)
}

// read returns the next answer.
func (c *client) read() wire.Frame {
	c.t.Helper()
	f, err := c.next()
	if err != nil {
		c.t.Fatalf("read an answer: %v", err)
	}
	return f
}

// write sends requests in one turn.
func (c *client) write(frames ...wire.Frame) {
	c.t.Helper()
	var b []byte
	for _, f := range frames {
		b = wire.AppendFrame(b, f)
	}
	if _, err := c.net.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// ask sends a request and returns its answer.
func (c *client) ask(f wire.Frame) wire.Frame {
	c.t.Helper()
	c.write(f)
	return c.read()
}

// open opens a box and returns its state.
func (c *client) open(key *wire.BoxKey, create bool) *wire.Opened {
	c.t.Helper()
	return answer[*wire.Opened](c.t, c.ask(wire.SignOpen(key, c.node, c.hello.Nonce, create)))
}

// register registers tags of contacts.
func (c *client) register(generation uint64, prune bool, tags ...envelope.Tag) *wire.Registered {
	c.t.Helper()
	return answer[*wire.Registered](c.t, c.ask(tagsFrame(generation, prune, wire.ClassContact, tags...)))
}

func tagsFrame(generation uint64, prune bool, class wire.Class, tags ...envelope.Tag) *wire.Tags {
	f := &wire.Tags{Generation: generation, Prune: prune}
	for _, tag := range slices.SortedFunc(slices.Values(tags), func(a, b envelope.Tag) int { return bytes.Compare(a[:], b[:]) }) {
		f.Tags = append(f.Tags, wire.Registration{Tag: tag, Class: class})
	}
	return f
}

// deposit leaves an envelope and returns the refusal, 0 if there was a good
// receipt.
func (c *client) deposit(env []byte) wire.Refusal {
	c.t.Helper()
	return c.outcome(env, c.ask(&wire.Deposit{Envelope: env}))
}

func (c *client) outcome(env []byte, f wire.Frame) wire.Refusal {
	c.t.Helper()
	switch f := f.(type) {
	case *wire.Stored:
		if !f.Verify(c.node, env) {
			c.t.Fatal("the receipt is not good")
		}
		return 0
	case *wire.Refused:
		return f.Why
	}
	c.t.Fatalf("the answer to a deposit is %T", f)
	return 0
}

// depositAll leaves envelopes, many on their way at one time, and returns the
// refusals.
func (c *client) depositAll(envs [][]byte) []wire.Refusal {
	c.t.Helper()
	var out []wire.Refusal
	for part := range slices.Chunk(envs, 64) {
		var frames []wire.Frame
		for _, env := range part {
			frames = append(frames, &wire.Deposit{Envelope: env})
		}
		c.write(frames...)
		for _, env := range part {
			out = append(out, c.outcome(env, c.read()))
		}
	}
	return out
}

// holds asks for a proof that an envelope is there.
func (c *client) holds(env []byte) bool {
	c.t.Helper()
	a := wire.AuditFor(env, wire.Nonce(random(32)))
	switch f := c.ask(a).(type) {
	case *wire.Proof:
		if !f.Verify(env, a.Nonce) {
			c.t.Fatal("the proof is not good")
		}
		return true
	case *wire.Refused:
		if f.Why != wire.RefusedUnknown {
			c.t.Fatalf("an audit was refused with %d", f.Why)
		}
		return false
	default:
		c.t.Fatalf("the answer to an audit is %T", f)
		return false
	}
}

// page collects without waiting.
func (c *client) page(after uint64, done ...uint64) *wire.Page {
	c.t.Helper()
	return answer[*wire.Page](c.t, c.ask(&wire.Collect{After: after, Done: done}))
}

// drain collects everything and has it deleted.
func (c *client) drain() (envs [][]byte) {
	c.t.Helper()
	var done []uint64
	after := uint64(0)
	for {
		p := c.page(after, done...)
		done = nil
		if len(p.Items) == 0 {
			return envs
		}
		for _, i := range p.Items {
			envs, done, after = append(envs, i.Envelope), append(done, i.ID), i.ID
		}
	}
}

func (c *client) close() { c.net.Reset() }

// answer returns an answer that is of one type.
func answer[F wire.Frame](t testing.TB, f wire.Frame) F {
	t.Helper()
	got, ok := f.(F)
	if !ok {
		if r, ok := f.(*wire.Refused); ok {
			t.Fatalf("refused with %d, want %T", r.Why, got)
		}
		t.Fatalf("the answer is %T, want %T", f, got)
	}
	return got
}

// refusal returns why a request was refused.
func refusal(t testing.TB, f wire.Frame) wire.Refusal {
	t.Helper()
	return answer[*wire.Refused](t, f).Why
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func newTag() envelope.Tag { return envelope.Tag(random(envelope.TagSize)) }

func newKey() *wire.BoxKey { return (*wire.BoxKey)(random(32)) }

// letter makes an envelope under a tag.
func letter(tag envelope.Tag, size int) []byte {
	return append(tag[:], random(size-len(tag))...)
}

func letters(tag envelope.Tag, size, n int) (out [][]byte) {
	for range n {
		out = append(out, letter(tag, size))
	}
	return out
}

// Everything there is, once.
func TestDepositAndCollect(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		owner, sender := h.dial(1), h.dial(2)
		if owner.hello.Hours != 30*24 || owner.hello.Draining {
			t.Errorf("hello is %+v", owner.hello)
		}
		key, tag := newKey(), newTag()
		if got := owner.open(key, true); *got != (wire.Opened{Quota: mailbox.DefaultBoxQuota}) {
			t.Errorf("a new box is %+v", got)
		}
		if got := owner.register(1, false, tag, newTag()); *got != (wire.Registered{Generation: 1, Tags: 2}) {
			t.Errorf("registered %+v", got)
		}
		envs := append(letters(tag, protocol.MinEnvelope, 100), letter(tag, protocol.MaxEnvelope), letter(tag, 4096))
		for i, why := range sender.depositAll(envs) {
			if why != 0 {
				t.Fatalf("deposit %d was refused with %d", i, why)
			}
		}
		if why := sender.deposit(envs[3]); why != 0 { // the same again: a receipt, and one copy
			t.Fatalf("the second deposit was refused with %d", why)
		}
		if !sender.holds(envs[99]) || sender.holds(letter(tag, 1024)) {
			t.Error("audits are not answered truthfully")
		}
		first := owner.page(0)
		if len(first.Items) != wire.MaxItems || !first.More {
			t.Fatalf("the first page has %d items, more %v", len(first.Items), first.More)
		}
		if again := owner.page(0); again.Items[0].ID != first.Items[0].ID {
			t.Error("what was not done with is gone")
		}
		got := owner.drain()
		if !slices.EqualFunc(got, envs, bytes.Equal) {
			t.Fatalf("collected %d envelopes, want %d in their order", len(got), len(envs))
		}
		if sender.holds(envs[0]) {
			t.Error("what was collected is still there")
		}
		if st, err := h.Status(t.Context()); err != nil || st.Items != 0 || st.Mail != 0 || st.Boxes != 1 || st.Tags != 2 {
			t.Errorf("the status is %+v, %v", st, err)
		}
		if again := h.dial(1).open(key, false); again.Items != 0 || again.Generation != 1 || again.Tags != 2 {
			t.Errorf("opened again: %+v", again)
		}
	})
}
