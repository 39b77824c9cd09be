package discovery

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/protocol/rendezvous"
)

// How a walk proceeds (docs/spec/discovery.md, section 5):
//
// 1. The nodes of the routing table nearest to the target are dealt out to
//    disjoint paths. A node belongs to the path that heard of it first.
// 2. Each path asks its nearest node that it has not asked yet for nearer ones.
// 3. What an answer names is kept if it is nearer than the one who answered, or
//    among the nearest that the path knows; the rest is dropped.
// 4. A path ends when its nearest nodes have all answered.
//
// A look-up takes two walks: one to a random target that shares its first bits
// with the key, which shows nobody the key, and one from there to the key.

const (
	// paths is the number of disjoint paths: one liar leads one of them astray.
	paths = 3
	// closest is k of Kademlia: how many nodes nearest to a key may hold it.
	closest = 20
	// enoughMasked and enoughKey are how many of a path's nearest nodes must
	// have answered: a first footing, and a third of closest each.
	enoughMasked = 3
	enoughKey    = closest/paths + 1
	// maxAsked bounds the nodes that one walk asks, whatever liars name.
	maxAsked = 64
	// askTime bounds one question, a dial included; after slowTime another node
	// is asked besides.
	askTime  = 3 * time.Second
	slowTime = 400 * time.Millisecond

	// maskMin and maskMax bound the bits that a masked target shares with its key:
	// fewer and the walk ends far away, more and it tells the key's neighbours.
	maskMin = 10
	maskMax = 12
)

// hash is a place in the key space: SHA-256 of a key or a peer id.
type hash [sha256.Size]byte

func hashOf[T ~string | ~[]byte](b T) hash { return sha256.Sum256([]byte(b)) }

func (h hash) distance(to hash) (d hash) {
	for i := range h {
		d[i] = h[i] ^ to[i]
	}
	return d
}

// shared returns the number of leading bits that two places share.
func (h hash) shared(with hash) int {
	for i := range h {
		if x := h[i] ^ with[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return 8 * len(h)
}

// maskedTarget returns a random peer id whose place shares maskMin to maskMax
// bits with the key's: it looks like any other search for a peer.
func maskedTarget(key hash) peer.ID {
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	want := maskMin + int(seed[0])%(maskMax-maskMin+1)
	id := append([]byte(ed25519IDPrefix), seed[:]...)
	for {
		if hashOf(id).shared(key) >= want {
			return peer.ID(id)
		}
		_, _ = rand.Read(id[len(ed25519IDPrefix):])
	}
}

// ed25519IDPrefix is what every Ed25519 peer id begins with.
const ed25519IDPrefix = "\x00\x24\x08\x01\x12\x20"

// walk goes towards a target.
type walk struct {
	self    peer.ID
	target  hash
	seeds   []peer.ID
	enough  int  // of a path's nearest nodes must have answered
	abreast int  // questions in flight per path
	patient bool // waits for slow nodes too
	// ask asks a node, which may be far down; it returns the nodes it named, at most
	// closest. It is called from several goroutines.
	ask func(context.Context, peer.ID) ([]peer.ID, error)
}

type nodeState uint8

const (
	stateHeard nodeState = iota
	stateAsked
	stateAnswered
	stateFailed
)

type walkNode struct {
	id       peer.ID
	distance hash
	path     int
	state    nodeState
	slow     bool
}

type walkEvent struct {
	id     peer.ID
	slow   bool
	closer []peer.ID
	err    error
}

// run walks until every path has ended or ctx has, and returns the nodes that
// answered, nearest first. Every question it asked has ended when it returns.
func (w *walk) run(ctx context.Context) []peer.ID {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()

	nodes := make(map[peer.ID]*walkNode)
	var inPath [paths][]*walkNode // nearest first
	add := func(id peer.ID, path int) {
		if id == w.self || nodes[id] != nil {
			return
		}
		n := &walkNode{id: id, distance: hashOf(id).distance(w.target), path: path}
		nodes[id] = n
		at, _ := slices.BinarySearchFunc(inPath[path], n, byDistance)
		inPath[path] = slices.Insert(inPath[path], at, n)
	}
	for i, id := range w.seeds {
		add(id, i%paths)
	}

	events := make(chan walkEvent, 2*maxAsked)
	asked, some := 0, false // questions, and whether anyone answered
	start := func(n *walkNode) {
		n.state = stateAsked
		asked++
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTime)
			defer cancel()
			slow := time.AfterFunc(slowTime, func() { events <- walkEvent{id: n.id, slow: true} })
			closer, err := w.ask(ctx, n.id)
			slow.Stop()
			events <- walkEvent{id: n.id, closer: closer, err: err}
		})
	}
	for {
		// Slow nodes hold up a walk only if nobody else answered, or it is patient.
		fast, slow := false, false
		for _, path := range inPath {
			inFlight := 0
			for _, n := range path {
				if n.state == stateAsked && !n.slow {
					inFlight++
				}
			}
			rank := 0
			for _, n := range path {
				if n.state == stateFailed {
					continue
				}
				if rank++; rank > w.enough {
					break
				}
				if n.state == stateHeard && inFlight < w.abreast && asked < maxAsked {
					start(n)
					inFlight++
				}
				fast = fast || n.state == stateAsked && !n.slow
				slow = slow || n.state == stateAsked && n.slow
			}
		}
		if !fast && (!slow || some && !w.patient) {
			break
		}
		select {
		case <-ctx.Done():
			return answered(nodes)
		case e := <-events:
			n := nodes[e.id]
			switch {
			case e.slow:
				n.slow = true
			case e.err != nil:
				n.state = stateFailed
			default:
				n.state, some = stateAnswered, true
				for _, id := range e.closer[:min(len(e.closer), closest)] {
					if w.useful(id, n, inPath[n.path]) {
						add(id, n.path)
					}
				}
			}
		}
	}
	return answered(nodes)
}

// useful reports whether a node named in an answer is nearer to the target than
// who answered, or among the nearest of its path: an honest answer near the
// target holds both, and nothing else.
func (w *walk) useful(id peer.ID, by *walkNode, path []*walkNode) bool {
	d := hashOf(id).distance(w.target)
	if less(d, by.distance) {
		return true
	}
	rank := 0
	for _, n := range path {
		if n.state == stateFailed {
			continue
		}
		if less(d, n.distance) {
			break
		}
		rank++
	}
	return rank < closest
}

func answered(nodes map[peer.ID]*walkNode) []peer.ID {
	var ns []*walkNode
	for _, n := range nodes {
		if n.state == stateAnswered {
			ns = append(ns, n)
		}
	}
	slices.SortFunc(ns, byDistance)
	ids := make([]peer.ID, len(ns))
	for i, n := range ns {
		ids[i] = n.id
	}
	return ids
}

func byDistance(a, b *walkNode) int { return slices.Compare(a.distance[:], b.distance[:]) }

func less(a, b hash) bool { return slices.Compare(a[:], b[:]) < 0 }

// Announce leaves a sealed record at a point: with the ten community nodes
// nearest to it that take it, and reads it back from them. It takes at most
// five seconds. The error is nil if at least one node confirmed; what it
// returns beside an error is still true.
func (d *Discovery) Announce(ctx context.Context, point rendezvous.Point, record []byte) (Published, error) {
	key := point.Key()
	if err := d.table.validate(key, record); err != nil {
		return Published{}, err
	}
	if open, stop := d.whileOpen(ctx); open != nil {
		defer stop()
		p, err := d.announceInTable(open, key, record)
		if err == nil || ctx.Err() != nil || !d.byErrand() {
			return p, err
		}
	}
	return d.announceByErrand(ctx, point, record)
}

func (d *Discovery) announceInTable(ctx context.Context, key [32]byte, record []byte) (Published, error) {
	ctx, cancel := context.WithTimeout(ctx, announceTime)
	defer cancel()
	if !d.ready(ctx) {
		return Published{}, ErrNoPeers
	}
	published := d.table.publish(ctx, key, record)
	if published.Asked == 0 && d.join(ctx) { // all that we knew were gone
		published = d.table.publish(ctx, key, record)
	}
	switch {
	case published.Asked == 0:
		return published, ErrNoPeers
	case published.Confirmed == 0:
		return published, errNotKept
	}
	return published, nil
}

var errNotKept = errors.New("no community node kept the record: it is announced again later")

const (
	announceTime = 5 * time.Second
	// findTime bounds a look-up in which nobody answers usefully.
	findTime = 10 * time.Second
	// readyTime bounds the wait for a first community node.
	readyTime = 5 * time.Second
	// maskTime bounds the first walk of a look-up, and nearTime the second of
	// a publication.
	maskTime = 1500 * time.Millisecond
	nearTime = 2 * time.Second
	// grace is how long a look-up waits for a newer record after the first.
	grace = 300 * time.Millisecond
)

// hit is a valid record that somebody gave us.
type hit struct {
	found  Found
	record []byte
	key    [32]byte
}

// Find looks at all points at once and returns the valid record with the
// highest sequence number among those that come within 300 ms of the first.
// The points should be those of one day, whose numbers can be compared. Records
// with a lower number than one already found at the same point are not
// believed. It returns ErrNoPeers or ErrNotFound, or the error of ctx.
func (d *Discovery) Find(ctx context.Context, points []rendezvous.Point) (Found, error) {
	if open, stop := d.whileOpen(ctx); open != nil {
		defer stop()
		found, err := d.findInTable(open, points)
		if err == nil || ctx.Err() != nil || !d.byErrand() {
			return found, err
		}
	}
	return d.findByErrand(ctx, points)
}

func (d *Discovery) findInTable(ctx context.Context, points []rendezvous.Point) (Found, error) {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, findTime)
	defer cancel()
	if !d.ready(ctx) {
		return Found{}, cmp.Or(outer.Err(), ErrNoPeers)
	}

	for range 2 {
		best, answers := d.search(ctx, points)
		if best != nil {
			d.accept(best, answers[best.found.Point])
			return best.found, nil
		}
		switch {
		case outer.Err() != nil:
			return Found{}, outer.Err()
		case slices.ContainsFunc(answers, func(a *answerLog) bool { return a.heard() }):
			return Found{}, ErrNotFound
		case !d.join(ctx): // all that we knew were gone
			return Found{}, cmp.Or(outer.Err(), ErrNoPeers)
		}
	}
	return Found{}, ErrNoPeers
}

// search looks at all points once and returns the newest record, or nil, and
// what was answered at each point.
func (d *Discovery) search(ctx context.Context, points []rendezvous.Point) (*hit, []*answerLog) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hits := make(chan hit)
	var looking sync.WaitGroup
	answers := make([]*answerLog, len(points))
	for i, point := range points {
		answers[i] = new(answerLog)
		looking.Go(func() { d.look(ctx, i, point, answers[i], hits) })
	}
	go func() {
		looking.Wait()
		close(hits)
	}()

	var best *hit
	newer := func(h hit) {
		if best == nil || h.found.Seq > best.found.Seq {
			best = &h
		}
	}
	var timer <-chan time.Time
	for {
		select {
		case h, more := <-hits:
			if !more {
				return best, answers
			}
			if best == nil {
				timer = time.After(grace)
			}
			newer(h)
		case <-timer:
			cancel()
			for h := range hits { // until the walks have ended
				newer(h)
			}
			return best, answers
		}
	}
}

// accept remembers a record and has it given back to those that lack it.
func (d *Discovery) accept(best *hit, answers *answerLog) {
	d.floors.raise(best.key, best.found.Seq)
	lacking := answers.lacking(best.found.Seq)
	if len(lacking) == 0 {
		return
	}
	select {
	case d.repairs <- repair{key: best.key, record: best.record, to: lacking}:
	default: // busy: the record's owner publishes it again anyway
	}
}

// look searches one point.
func (d *Discovery) look(ctx context.Context, index int, point rendezvous.Point, log *answerLog, hits chan<- hit) {
	key := point.Key()
	d.table.search(ctx, key, func(from peer.ID, record []byte) {
		h, ok := d.read(index, point, record)
		log.note(from, h.found.Seq, ok)
		if !ok {
			return
		}
		select {
		case hits <- h:
		case <-ctx.Done():
		}
	})
}

// read opens a record that somebody gave us, unless it is older than what was
// found before at the same point.
func (d *Discovery) read(index int, point rendezvous.Point, record []byte) (h hit, ok bool) {
	key := point.Key()
	body, seq, err := point.Open(record, d.cfg.Now())
	if err != nil || seq < d.floors.of(key) {
		return hit{}, false
	}
	return hit{found: Found{Point: index, Body: body, Seq: seq}, record: record, key: key}, true
}

// answerLog notes who had what at one point.
type answerLog struct {
	mu      sync.Mutex
	answers []answer
}

type answer struct {
	from peer.ID
	seq  uint64
	has  bool
}

func (l *answerLog) note(from peer.ID, seq uint64, has bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers = append(l.answers, answer{from, seq, has})
}

func (l *answerLog) heard() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.answers) > 0
}

// lacking returns who answered without a record as new as seq.
func (l *answerLog) lacking(seq uint64) (lacking []peer.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.answers {
		if (!a.has || a.seq < seq) && len(lacking) < maxRepairs {
			lacking = append(lacking, a.from)
		}
	}
	return lacking
}

// maxFloors bounds the points whose highest sequence number is remembered.
const maxFloors = 4096

// floors remembers the highest sequence number found at each point, so that
// nobody can hand us an older record again (threats E04). Points change every
// day, so a run's memory is enough.
type floors struct {
	mu    sync.Mutex
	seqs  map[[32]byte]uint64
	order [][32]byte // oldest first
}

func newFloors() *floors { return &floors{seqs: make(map[[32]byte]uint64)} }

func (f *floors) of(key [32]byte) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seqs[key]
}

func (f *floors) raise(key [32]byte, seq uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.seqs[key]; !ok {
		if len(f.order) == maxFloors {
			delete(f.seqs, f.order[0])
			f.order = f.order[1:]
		}
		f.order = append(f.order, key)
	}
	f.seqs[key] = max(f.seqs[key], seq)
}
