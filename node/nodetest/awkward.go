package nodetest

import (
	"bufio"
	"crypto/ed25519"
	crand "crypto/rand"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// Behaviour says how the mailboxes of a community node misbehave. Each field
// but those of a time is the share, from 0 to 1, of what it names that comes to
// that end. The zero value is an honest node.
type Behaviour struct {
	Drop        float64 // deposits: signed for, not kept
	DropTags    int     // deposits under the first so many tags that come: signed for, not kept
	Forget      float64 // deposits: signed for, kept for ForgetAfter
	FalseSign   float64 // deposits: the receipt's signature is none
	OtherSign   float64 // deposits: the receipt is for another envelope
	FalseProof  float64 // audits: the proof is none
	Full        float64 // deposits: refused, the box is said to be full
	Busy        float64 // deposits: refused, for BusyFor
	Draining    float64 // streams: the node says that it retires, and takes nothing
	NoBox       float64 // openings of a box: there is none, it says
	NoTags      float64 // registrations of tags: confirmed and not done
	TagsBusy    float64 // registrations of tags: refused, for BusyFor
	Hide        float64 // envelopes: never handed out, and proven to be there
	Delay       float64 // envelopes: handed out after up to DelayFor
	Mutate      float64 // envelopes: handed out with a bit changed, cut, or under another tag
	Reorder     float64 // batches of what arrived: shuffled
	Replay      float64 // batches: something handed out before is among them
	Stranger    float64 // batches: something out of another box is among them
	Empty       float64 // collections: answered at once, with nothing
	Unasked     float64 // collections: answered at once with a confirmation of tags that nobody registered
	Flood       float64 // collections: answered at once with a page of junk of envelopes of FloodSize
	Garbage     float64 // answers: something that is not a frame, then the end
	Cut         float64 // answers: half of it, then the end
	Slow        float64 // answers: late by up to SlowFor
	Vanish      float64 // streams: ended before a word
	Crash       float64 // requests: the service crashes, and is back after CrashFor
	Hours       *uint16 // what it says of how long it keeps mail; nil: the truth
	ForgetAfter time.Duration
	BusyFor     time.Duration
	DelayFor    time.Duration
	SlowFor     time.Duration
	Pace        int // bytes a second of what it sends; 0: as fast as it goes
	CrashFor    time.Duration
	FloodSize   int
}

// Mild is how community nodes are unless a test says otherwise: a bit of
// everything that loses nothing. A lossy one also drops and forgets; of three
// nodes that hold the same mail one may.
func Mild(lossy bool) Behaviour {
	b := Behaviour{
		Busy: 0.05, BusyFor: time.Second,
		NoBox: 0.05,
		Delay: 0.05, DelayFor: 5 * time.Second,
		Reorder: 0.1, Replay: 0.1, Stranger: 0.1,
		Cut: 0.03, Garbage: 0.02,
		Slow: 0.1, SlowFor: time.Second,
		Vanish: 0.05,
		Crash:  0.005, CrashFor: 2 * time.Second,
	}
	if lossy {
		b.Drop, b.Forget, b.ForgetAfter, b.Mutate = 0.05, 0.05, time.Minute, 0.05
	}
	return b
}

// Behave has the node's mailboxes misbehave from the next frame on.
func (c *Community) Behave(b Behaviour) {
	c.awkward.mu.Lock()
	defer c.awkward.mu.Unlock()
	c.awkward.Behaviour, c.awkward.dropped = b, nil
}

// awkward stands between a node's mailboxes and their users. It has the node's
// key, so it can do whatever a hostile operator can: the requests of an owner
// and the answers to them pass through it, and the numbers of envelopes are its
// own.
type awkward struct {
	key   ed25519.PrivateKey
	crash func() // ends the service as kill -9 does, and starts it again

	mu sync.Mutex
	Behaviour
	rng       *rand.Rand
	service   *mailbox.Service // nil: crashed
	talks     map[*talk]struct{}
	boxes     map[wire.BoxID]*awkwardBox
	forgotten map[wire.Digest]time.Time // from when on
	dropped   []envelope.Tag
}

func newAwkward(n *Network) *awkward {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &awkward{
		rng:       rand.New(rand.NewPCG(n.rng.Uint64(), 0)),
		talks:     make(map[*talk]struct{}),
		boxes:     make(map[wire.BoxID]*awkwardBox),
		forgotten: make(map[wire.Digest]time.Time),
	}
}

// serve has the streams go to a service from now on; nil: nowhere. Those that
// are open are cut.
func (a *awkward) serve(s *mailbox.Service) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.service = s
	for t := range a.talks {
		_ = t.client.Reset()
	}
}

// happens draws. The caller holds mu, as with all below whose name begins with
// a lower-case verb of what they change.
func (a *awkward) happens(share float64) bool { return share > 0 && a.rng.Float64() < share }

// drops says whether a tag is one whose envelopes are dropped.
func (a *awkward) drops(t envelope.Tag) bool {
	if !slices.Contains(a.dropped, t) && len(a.dropped) < a.DropTags {
		a.dropped = append(a.dropped, t)
	}
	return slices.Contains(a.dropped, t)
}

func (a *awkward) within(d time.Duration) time.Duration {
	return time.Duration(a.rng.Int64N(int64(d) + 1))
}

// maxPast bounds what is kept of a box to be replayed.
const maxPast = 64

// awkwardBox is a box as its owner is shown it.
type awkwardBox struct {
	last    uint64 // number that was given last
	fetched uint64 // the service's number of the newest envelope that came from it
	items   []awkwardItem
	late    []awkwardItem
	past    [][]byte // handed out before
}

// awkwardItem is an envelope as it is handed out.
type awkwardItem struct {
	id   uint64 // for its owner
	real uint64 // for the service; 0: made up
	env  []byte
	from time.Time // when it may be handed out
}

// arrive takes what the service handed out.
func (a *awkward) arrive(b *awkwardBox, p *wire.Page) {
	var now []awkwardItem
	for _, item := range p.Items {
		if item.ID <= b.fetched {
			continue
		}
		b.fetched = item.ID
		i := awkwardItem{real: item.ID, env: item.Envelope}
		if len(b.past) < maxPast {
			b.past = append(b.past, i.env)
		} else {
			b.past[a.rng.IntN(maxPast)] = i.env
		}
		if a.happens(a.Mutate) {
			i.env = a.mutate(i.env)
		}
		switch {
		case a.happens(a.Hide):
		case a.happens(a.Delay):
			i.from = time.Now().Add(a.within(a.DelayFor))
			b.late = append(b.late, i)
		default:
			now = append(now, i)
		}
	}
	if len(now) > 0 && a.happens(a.Replay) {
		now = append(now, awkwardItem{env: b.past[a.rng.IntN(len(b.past))]})
	}
	if len(now) > 0 && a.happens(a.Stranger) {
		for _, other := range a.boxes {
			if other != b && len(other.past) > 0 {
				now = append(now, awkwardItem{env: other.past[0]})
				break
			}
		}
	}
	if a.happens(a.Reorder) {
		a.rng.Shuffle(len(now), func(i, j int) { now[i], now[j] = now[j], now[i] })
	}
	b.add(now...)
}

func (b *awkwardBox) add(items ...awkwardItem) {
	for _, i := range items {
		b.last++
		i.id = b.last
		b.items = append(b.items, i)
	}
}

// mutate returns a changed copy.
func (a *awkward) mutate(env []byte) []byte {
	out := slices.Clone(env)
	switch a.rng.IntN(3) {
	case 0:
		out[a.rng.IntN(len(out))] ^= 1 << a.rng.IntN(8)
	case 1:
		if len(out) > protocol.MinEnvelope {
			return out[:len(out)/2]
		}
		clear(out[len(out)/2:])
	default:
		out[0] ^= 1 // of the tag
	}
	return out
}

// page is what an owner gets now who has everything up to a number.
func (a *awkward) page(b *awkwardBox, after uint64) *wire.Page {
	now := time.Now()
	b.late = slices.DeleteFunc(b.late, func(i awkwardItem) bool {
		if i.from.After(now) {
			return false
		}
		b.add(i)
		return true
	})
	p := &wire.Page{}
	size := 0
	for _, i := range b.items {
		if i.id <= after || i.real != 0 && a.forgot(i.env) {
			continue
		}
		if size += len(i.env); size > wire.MaxPage || len(p.Items) == wire.MaxItems {
			p.More = true
			break
		}
		p.Items = append(p.Items, wire.Item{ID: i.id, Envelope: i.env})
	}
	return p
}

func (a *awkward) forgot(env []byte) bool { return a.lost(wire.DigestOf(env)) }

func (a *awkward) lost(d wire.Digest) bool {
	at, ok := a.forgotten[d]
	return ok && !at.After(time.Now())
}

// done removes what an owner is done with, and returns the service's numbers
// of that.
func (b *awkwardBox) done(ids []uint64) (real []uint64) {
	b.items = slices.DeleteFunc(b.items, func(i awkwardItem) bool {
		if !slices.Contains(ids, i.id) {
			return false
		}
		if i.real != 0 {
			real = append(real, i.real)
		}
		return true
	})
	slices.Sort(real)
	return real
}

// junk is a page of envelopes that are nobody's.
func (a *awkward) junk(b *awkwardBox, size int) *wire.Page {
	p := &wire.Page{More: true}
	for total := size; total <= wire.MaxPage && len(p.Items) < wire.MaxItems; total += size {
		b.last++
		env := make([]byte, size)
		crand.Read(env[:32])
		p.Items = append(p.Items, wire.Item{ID: b.last, Envelope: env})
	}
	return p
}

// talk is one stream of a client.
type talk struct {
	a      *awkward
	client network.Stream
	inner  net.Conn // to the service
	steps  chan step
	ended  chan struct{}

	mu  sync.Mutex
	box *awkwardBox // that was opened
}

// step is a request on its way, and what is made of the service's answer. If
// it did not go to the service the answer is to nil.
type step struct {
	passed bool
	answer func(wire.Frame) wire.Frame
}

// behind is the stream that the service sees: the client's, but for the bytes.
type behind struct {
	network.Stream
	pipe net.Conn
}

func (b behind) Read(p []byte) (int, error)                   { return b.pipe.Read(p) }
func (b behind) Write(p []byte) (int, error)                  { return b.pipe.Write(p) }
func (b behind) Close() error                                 { return b.pipe.Close() }
func (b behind) CloseRead() error                             { return b.pipe.Close() }
func (b behind) CloseWrite() error                            { return b.pipe.Close() }
func (b behind) Reset() error                                 { return b.pipe.Close() }
func (b behind) ResetWithError(network.StreamErrorCode) error { return b.pipe.Close() }
func (b behind) SetDeadline(t time.Time) error                { return b.pipe.SetDeadline(t) }
func (b behind) SetReadDeadline(t time.Time) error            { return b.pipe.SetReadDeadline(t) }
func (b behind) SetWriteDeadline(t time.Time) error           { return b.pipe.SetWriteDeadline(t) }

// handle is the stream handler.
func (a *awkward) handle(s network.Stream) {
	inner, outer := net.Pipe()
	t := &talk{a: a, client: s, inner: inner, steps: make(chan step, 2*wire.MaxItems), ended: make(chan struct{})}
	a.mu.Lock()
	service := a.service
	if service == nil || a.happens(a.Vanish) {
		a.mu.Unlock()
		_ = s.Reset()
		return
	}
	a.talks[t] = struct{}{}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.talks, t)
	}()
	var all sync.WaitGroup
	all.Go(func() { service.Handle(behind{s, outer}) })
	all.Go(func() {
		defer close(t.steps)
		t.ask()
	})
	if errors.Is(t.answer(), io.EOF) {
		_ = s.Close()
	}
	close(t.ended)
	_ = s.Reset()
	_ = inner.Close()
	all.Wait()
}

// ask reads requests until the client or the service is gone.
func (t *talk) ask() {
	in := bufio.NewReader(t.client)
	for {
		f, err := wire.ReadRequest(in)
		if err != nil {
			_ = t.inner.Close()
			return
		}
		pass, answer := t.decide(f)
		select {
		case t.steps <- step{pass != nil, answer}:
		case <-t.ended:
			return
		}
		if pass == nil {
			continue
		}
		if _, err := t.inner.Write(wire.AppendFrame(nil, pass)); err != nil {
			return
		}
	}
}

// decide says what of a request goes to the service, and what is made of its
// answer.
func (t *talk) decide(f wire.Frame) (pass wire.Frame, answer func(wire.Frame) wire.Frame) {
	a := t.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.happens(a.Crash) {
		go a.crash()
	}
	say := func(f wire.Frame) (wire.Frame, func(wire.Frame) wire.Frame) {
		return nil, func(wire.Frame) wire.Frame { return f }
	}
	truth := func(f wire.Frame) wire.Frame { return f }
	switch f := f.(type) {
	case *wire.Deposit:
		switch {
		case a.happens(a.Full):
			return say(&wire.Refused{Why: wire.RefusedFull})
		case a.happens(a.Busy):
			return say(&wire.Refused{Why: wire.RefusedBusy, Wait: a.BusyFor})
		case a.happens(a.Drop), a.drops(envelope.Tag(f.Envelope[:envelope.TagSize])):
			return say(wire.SignStored(a.key, f.Envelope, a.hours()))
		case a.happens(a.OtherSign):
			return say(wire.SignStored(a.key, a.mutate(f.Envelope), a.hours()))
		}
		// Set before it is stored, or its owner's open question is answered first.
		digest := wire.DigestOf(f.Envelope)
		if a.happens(a.Forget) {
			a.forgotten[digest] = time.Now().Add(a.ForgetAfter)
		} else {
			delete(a.forgotten, digest)
		}
		lie := a.happens(a.FalseSign)
		return f, func(answer wire.Frame) wire.Frame {
			s, ok := answer.(*wire.Stored)
			if !ok {
				return answer
			}
			if a.Hours != nil {
				s = wire.SignStored(a.key, f.Envelope, *a.Hours)
			}
			if lie {
				s.Signature[a.rng.IntN(len(s.Signature))] ^= 1
			}
			return s
		}
	case *wire.Audit:
		if a.lost(f.Digest) {
			return say(&wire.Refused{Why: wire.RefusedUnknown})
		}
		if a.happens(a.FalseProof) {
			return say(wire.Prove(nil, f.Nonce))
		}
	case *wire.Open:
		if a.happens(a.NoBox) {
			return say(&wire.Refused{Why: wire.RefusedNoBox})
		}
		return f, func(answer wire.Frame) wire.Frame {
			if _, ok := answer.(*wire.Opened); ok {
				if a.boxes[f.Box] == nil {
					a.boxes[f.Box] = &awkwardBox{}
				}
				t.opened(a.boxes[f.Box])
			}
			return answer
		}
	case *wire.Tags:
		switch {
		case a.happens(a.TagsBusy):
			return say(&wire.Refused{Why: wire.RefusedBusy, Wait: a.BusyFor})
		case a.happens(a.NoTags):
			return say(&wire.Registered{Generation: f.Generation, Tags: uint32(len(f.Tags))})
		}
	case *wire.Collect:
		b := t.owned()
		if b == nil {
			break
		}
		if a.happens(a.Empty) {
			return say(&wire.Page{})
		}
		if a.happens(a.Unasked) {
			return say(&wire.Registered{Generation: 1})
		}
		if a.happens(a.Flood) {
			return say(a.junk(b, a.FloodSize))
		}
		pass := &wire.Collect{Done: b.done(f.Done), After: b.fetched, Wait: f.Wait}
		if len(a.page(b, f.After).Items) > 0 {
			pass.Wait = 0
		}
		for _, i := range b.late {
			pass.Wait = min(pass.Wait, time.Until(i.from).Truncate(time.Second)+time.Second)
		}
		return pass, func(answer wire.Frame) wire.Frame {
			p, ok := answer.(*wire.Page)
			if !ok {
				return answer
			}
			a.arrive(b, p)
			return a.page(b, f.After)
		}
	}
	return f, truth
}

func (t *talk) opened(b *awkwardBox) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.box = b
}

func (t *talk) owned() *awkwardBox {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.box
}

func (a *awkward) hours() uint16 {
	if a.Hours != nil {
		return *a.Hours
	}
	return uint16(mailbox.DefaultRetention / time.Hour)
}

// errAwkward ends a stream that was made an end of.
var errAwkward = errors.New("awkward")

// answer answers requests in their order, after Hello.
func (t *talk) answer() error {
	in := bufio.NewReader(t.inner)
	hello, err := wire.ReadAnswer(in)
	if err != nil {
		return err
	}
	if h, ok := hello.(*wire.Hello); ok {
		t.a.mu.Lock()
		h.Draining = h.Draining || t.a.happens(t.a.Draining)
		if t.a.Hours != nil {
			h.Hours = *t.a.Hours
		}
		t.a.mu.Unlock()
	}
	if err := t.send(hello); err != nil {
		return err
	}
	for s := range t.steps {
		var f wire.Frame
		if s.passed {
			if f, err = wire.ReadAnswer(in); err != nil {
				return err
			}
		}
		t.a.mu.Lock()
		f = s.answer(f)
		t.a.mu.Unlock()
		if err := t.send(f); err != nil {
			return err
		}
	}
	return io.EOF
}

// send writes an answer, or what is sent in its place.
func (t *talk) send(f wire.Frame) error {
	a := t.a
	out := wire.AppendFrame(nil, f)
	var wait time.Duration
	end := false
	a.mu.Lock()
	pace := a.Pace
	if a.happens(a.Slow) {
		wait = a.within(a.SlowFor)
	}
	switch {
	case a.happens(a.Cut):
		out, end = out[:len(out)/2], true
	case a.happens(a.Garbage):
		out, end = a.garbage(), true
	}
	a.mu.Unlock()
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		<-timer.C
	}
	if err := t.write(out, pace); err != nil {
		return err
	}
	if end {
		_ = t.client.CloseWrite()
		return errAwkward
	}
	return nil
}

// write writes so many bytes a second; 0: all at once.
func (t *talk) write(b []byte, pace int) error {
	if pace == 0 {
		_, err := t.client.Write(b)
		return err
	}
	for piece := range slices.Chunk(b, pace) {
		if _, err := t.client.Write(piece); err != nil {
			return err
		}
		time.Sleep(time.Duration(len(piece)) * time.Second / time.Duration(pace))
	}
	return nil
}

// garbage is something that begins like a frame of a node and is none.
func (a *awkward) garbage() []byte {
	switch a.rng.IntN(4) {
	case 0: // longer than any frame
		return []byte{0xff, 0xff, 0xff, 0x7f, byte(wire.TypePage)}
	case 1: // no such type
		return []byte{3, 0xff, 0, 0}
	case 2: // more items than a page may have, of no size
		return append([]byte{0x80, 0x10, byte(wire.TypePage), 0}, make([]byte, 1<<11)...)
	default: // a request
		return wire.AppendFrame(nil, &wire.Collect{})
	}
}
