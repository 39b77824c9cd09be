package nodetest

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"

	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol/envelope"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// mailClient is an honest user of a node's mailboxes, on a stream of its own.
type mailClient struct {
	t     *testing.T
	node  [32]byte
	s     network.Stream
	in    *bufio.Reader
	hello *wire.Hello
}

func dialMail(t *testing.T, n *Network, c *Community, machine int) *mailClient {
	t.Helper()
	h := n.Host(t, transport.Config{Role: transport.Errands}, IP(machine))
	connect(t, h, c.Host)
	s, err := h.NewStream(t.Context(), c.Info.ID, libp2p.ID(wire.Protocol))
	if err != nil {
		t.Fatal(err)
	}
	pub, err := c.Info.ID.ExtractPublicKey()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := pub.Raw()
	if err != nil {
		t.Fatal(err)
	}
	m := &mailClient{t: t, node: [32]byte(raw), s: s, in: bufio.NewReader(s)}
	m.hello, _ = m.read().(*wire.Hello)
	return m
}

// read returns nil if the stream ended or what came was no frame.
func (m *mailClient) read() wire.Frame {
	f, err := wire.ReadAnswer(m.in)
	if err != nil {
		return nil
	}
	return f
}

func (m *mailClient) ask(f wire.Frame) wire.Frame {
	m.t.Helper()
	if _, err := m.s.Write(wire.AppendFrame(nil, f)); err != nil {
		return nil
	}
	return m.read()
}

// own opens a box for a tag.
func (m *mailClient) own(key wire.BoxKey, tag envelope.Tag) {
	m.t.Helper()
	if _, ok := m.ask(wire.SignOpen(&key, m.node, m.hello.Nonce, true)).(*wire.Opened); !ok {
		m.t.Fatal("the box does not open")
	}
	if _, ok := m.ask(&wire.Tags{Generation: 1, Tags: []wire.Registration{{Tag: tag, Class: wire.ClassContact}}}).(*wire.Registered); !ok {
		m.t.Fatal("the tag is not registered")
	}
}

// collect returns what is handed out within a minute. It deletes nothing.
func (m *mailClient) collect() (all [][]byte) {
	m.t.Helper()
	after := uint64(0)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		p, ok := m.ask(&wire.Collect{After: after, Wait: 10 * time.Second}).(*wire.Page)
		if !ok {
			return all
		}
		for _, i := range p.Items {
			all, after = append(all, i.Envelope), i.ID
		}
	}
	return all
}

func testEnvelope(tag envelope.Tag, size int) []byte {
	env := make([]byte, size)
	rand.Read(env)
	copy(env, tag[:])
	return env
}

// TestAwkward looks at each way to misbehave from the outside, with eight
// envelopes.
func TestAwkward(t *testing.T) {
	const count = 8
	// seen is what owner and depositor see: what was deposited, answers to the
	// deposits, answers to audits after an hour, and what was handed out.
	type seen struct {
		node     [32]byte
		hours    uint16
		sent     [][]byte
		deposits []wire.Frame
		audits   []wire.Frame
		nonce    wire.Nonce
		got      [][]byte
	}
	receipts := func(s seen) (good int) {
		for i, f := range s.deposits {
			if r, ok := f.(*wire.Stored); ok && r.Verify(s.node, s.sent[i]) {
				good++
			}
		}
		return good
	}
	proofs := func(s seen) (good int) {
		for i, f := range s.audits {
			if p, ok := f.(*wire.Proof); ok && p.Verify(s.sent[i], s.nonce) {
				good++
			}
		}
		return good
	}
	refusals := func(frames []wire.Frame, why wire.Refusal) (n int) {
		for _, f := range frames {
			if r, ok := f.(*wire.Refused); ok && r.Why == why {
				n++
			}
		}
		return n
	}
	same := func(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }
	short := uint16(7)
	for name, test := range map[string]struct {
		b  Behaviour
		ok func(seen) bool
	}{
		"honest": {Behaviour{}, func(s seen) bool {
			return receipts(s) == count && proofs(s) == count && same(s.got, s.sent) && s.hours == 720
		}},
		"drop": {Behaviour{Drop: 1}, func(s seen) bool {
			return receipts(s) == count && refusals(s.audits, wire.RefusedUnknown) == count && len(s.got) == 0
		}},
		"forget": {Behaviour{Forget: 1, ForgetAfter: time.Minute}, func(s seen) bool {
			return receipts(s) == count && refusals(s.audits, wire.RefusedUnknown) == count && len(s.got) == 0
		}},
		"false signature": {Behaviour{FalseSign: 1}, func(s seen) bool { return receipts(s) == 0 && len(s.deposits) == count }},
		"another's receipt": {Behaviour{OtherSign: 1}, func(s seen) bool {
			_, ok := s.deposits[0].(*wire.Stored)
			return ok && receipts(s) == 0
		}},
		"false proof": {Behaviour{FalseProof: 1}, func(s seen) bool {
			_, ok := s.audits[0].(*wire.Proof)
			return ok && proofs(s) == 0
		}},
		"full": {Behaviour{Full: 1}, func(s seen) bool { return refusals(s.deposits, wire.RefusedFull) == count }},
		"busy": {Behaviour{Busy: 1, BusyFor: time.Second}, func(s seen) bool { return refusals(s.deposits, wire.RefusedBusy) == count }},
		"hide": {Behaviour{Hide: 1}, func(s seen) bool { return receipts(s) == count && proofs(s) == count && len(s.got) == 0 }},
		"delay": {Behaviour{Delay: 1, DelayFor: 40 * time.Second}, func(s seen) bool {
			return len(s.got) == count && !same(s.got, s.sent)
		}},
		"mutate": {Behaviour{Mutate: 1}, func(s seen) bool {
			for _, got := range s.got {
				if slices.ContainsFunc(s.sent, func(env []byte) bool { return bytes.Equal(env, got) }) {
					return false
				}
			}
			return len(s.got) == count && proofs(s) == count
		}},
		"reorder": {Behaviour{Reorder: 1}, func(s seen) bool { return len(s.got) == count && !same(s.got, s.sent) }},
		"replay":  {Behaviour{Replay: 1}, func(s seen) bool { return len(s.got) == count+1 }},
		"empty":   {Behaviour{Empty: 1}, func(s seen) bool { return proofs(s) == count && len(s.got) == 0 }},
		"garbage": {Behaviour{Garbage: 1}, func(s seen) bool { return len(s.got) == 0 }},
		"cut":     {Behaviour{Cut: 1}, func(s seen) bool { return len(s.got) == 0 }},
		"slow":    {Behaviour{Slow: 1, SlowFor: time.Second}, func(s seen) bool { return same(s.got, s.sent) && proofs(s) == count }},
		"hours":   {Behaviour{Hours: &short}, func(s seen) bool { return s.hours == short && receipts(s) == count }},
	} {
		t.Run(name, func(t *testing.T) {
			Bubble(t, 1, func(t *testing.T, n *Network) {
				n.SetLatency(10 * time.Millisecond)
				c := NewMailCommunities(t, n, 1)[0]
				c.Behave(Behaviour{})
				var tag envelope.Tag
				tag[0] = 1
				var key wire.BoxKey
				owner := dialMail(t, n, c, 1)
				owner.own(key, tag)
				c.Behave(test.b)
				s := seen{node: owner.node, nonce: wire.Nonce{1}}
				for i := range count {
					s.sent = append(s.sent, testEnvelope(tag, 1<<(10+i%3)))
				}
				depositor := dialMail(t, n, c, 2)
				if depositor.hello != nil {
					s.hours = depositor.hello.Hours
					for _, env := range s.sent {
						s.deposits = append(s.deposits, depositor.ask(&wire.Deposit{Envelope: env}))
					}
				}
				time.Sleep(time.Hour)
				auditor := dialMail(t, n, c, 3)
				if auditor.hello != nil {
					for _, env := range s.sent {
						s.audits = append(s.audits, auditor.ask(wire.AuditFor(env, s.nonce)))
					}
				}
				c.Behave(Behaviour{})
				owner = dialMail(t, n, c, 1)
				c.Behave(test.b)
				if _, ok := owner.ask(wire.SignOpen(&key, owner.node, owner.hello.Nonce, true)).(*wire.Opened); ok {
					s.got = owner.collect()
				}
				if !test.ok(s) {
					t.Errorf("%d receipts, %d proofs, %d of %d handed out", receipts(s), proofs(s), len(s.got), count)
				}
			})
		})
	}
}

// TestAwkwardStreams looks at what concerns whole streams: a node that retires,
// one that knows no box, one that ends streams, one that crashes, one that
// hands out junk and the mail of others.
func TestAwkwardStreams(t *testing.T) {
	Bubble(t, 1, func(t *testing.T, n *Network) {
		c := NewMailCommunities(t, n, 1)[0]
		var tag envelope.Tag
		var key, another wire.BoxKey
		tag[0], another[0] = 1, 1

		c.Behave(Behaviour{Draining: 1})
		if m := dialMail(t, n, c, 1); m.hello == nil || !m.hello.Draining {
			t.Error("it does not say that it retires")
		}
		c.Behave(Behaviour{NoBox: 1})
		m := dialMail(t, n, c, 1)
		if r, ok := m.ask(wire.SignOpen(&key, m.node, m.hello.Nonce, true)).(*wire.Refused); !ok || r.Why != wire.RefusedNoBox {
			t.Error("it does not deny the box")
		}
		c.Behave(Behaviour{NoTags: 1})
		m = dialMail(t, n, c, 1)
		m.own(key, tag)
		env := testEnvelope(tag, 1024)
		if r, ok := dialMail(t, n, c, 2).ask(&wire.Deposit{Envelope: env}).(*wire.Refused); !ok || r.Why != wire.RefusedUnknown {
			t.Error("it has registered a tag")
		}
		c.Behave(Behaviour{Vanish: 1})
		if m := dialMail(t, n, c, 1); m.hello != nil {
			t.Error("it says hello")
		}

		// owner opens a box again.
		again := func(key wire.BoxKey) *mailClient {
			m := dialMail(t, n, c, 1)
			if _, ok := m.ask(wire.SignOpen(&key, m.node, m.hello.Nonce, false)).(*wire.Opened); !ok {
				t.Fatal("the box does not open")
			}
			return m
		}
		c.Behave(Behaviour{Stranger: 1})
		theirs := envelope.Tag{2}
		dialMail(t, n, c, 1).own(key, tag)
		dialMail(t, n, c, 1).own(another, theirs)
		for _, to := range []envelope.Tag{tag, theirs} {
			dialMail(t, n, c, 2).ask(&wire.Deposit{Envelope: testEnvelope(to, 1024)})
		}
		first, second := again(key).collect(), again(another).collect()
		if len(first) != 1 || len(second) != 2 || !bytes.Equal(second[1], first[0]) {
			t.Errorf("one owner got %d, the other %d", len(first), len(second))
		}

		c.Behave(Behaviour{Flood: 1, FloodSize: 1024})
		p, ok := again(another).ask(&wire.Collect{Wait: time.Minute}).(*wire.Page)
		if !ok || len(p.Items) != wire.MaxItems || !p.More {
			t.Error("it does not hand out junk")
		}
		m = again(another)
		c.Behave(Behaviour{Crash: 1, CrashFor: time.Second})
		if m.ask(&wire.Collect{After: 1 << 40, Wait: time.Minute}) != nil {
			t.Error("it answers while it crashes")
		}
		c.Behave(Behaviour{})
		time.Sleep(time.Minute)
		if got := again(another).collect(); len(got) != 2 {
			t.Errorf("after the crash it hands out %d", len(got))
		}
	})
}
