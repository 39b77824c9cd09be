package discovery

import (
	"bufio"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"

	"github.com/kith-im/kith/protocol/errand"
	"github.com/kith-im/kith/protocol/rendezvous"
)

// A device that may dial bridges alone announces and finds by errands
// (docs/spec/errand.md): a community node behind a bridge looks into the table
// for it. What it brings is read as if it came from the table.

const (
	// errandTime bounds an announcement or a find by errands, and errandTry one
	// node's part of it, a dial included: bridges are slow where they are needed.
	errandTime = 40 * time.Second
	errandTry  = 20 * time.Second
	// errandNext is how long a node has the field alone before another is asked
	// besides: a bridge that was blocked in mid-run does not say so. Nobody waits
	// for an announcement, and at 128 kbit/s one second of a second copy is taken
	// from somebody who waits.
	errandNext         = 2 * time.Second
	errandNextAnnounce = 8 * time.Second
	// errandsAtOnce bounds what is asked at one time, below what nodes allow.
	errandsAtOnce = 6
	// errandTend is how often a lost connection to a bridge is noticed, and
	// errandPause the longest pause between attempts to have one.
	errandTend  = 5 * time.Second
	errandPause = 30 * time.Second
)

// carriers are the community nodes that do errands for us.
type carriers struct {
	mu      sync.Mutex
	on      bool
	begun   chan struct{}   // closed while they are on
	nodes   []peer.AddrInfo // the one that answered last first
	changed chan struct{}
	places  chan struct{} // one for each errand on its way
}

func newCarriers() *carriers {
	return &carriers{begun: make(chan struct{}), changed: make(chan struct{}, 1), places: make(chan struct{}, errandsAtOnce)}
}

// SetErrands says whether all announcing and finding is to be done by errands,
// and at which community nodes, best first. The table is left alone as long as it
// is on, and nobody else is dialled.
func (d *Discovery) SetErrands(on bool, nodes []peer.AddrInfo) {
	c := d.carriers
	c.mu.Lock()
	var next []peer.AddrInfo
	for _, info := range c.nodes { // those that serve us keep their rank
		if i := slices.IndexFunc(nodes, func(n peer.AddrInfo) bool { return n.ID == info.ID }); i >= 0 {
			next = append(next, capAddrs(nodes[i]))
		}
	}
	for _, info := range nodes {
		known := slices.ContainsFunc(next, func(n peer.AddrInfo) bool { return n.ID == info.ID })
		if !known && isEd25519(info.ID) && info.ID != d.cfg.Host.ID() && len(info.Addrs) > 0 {
			next = append(next, capAddrs(info))
		}
	}
	switch {
	case on && !c.on:
		close(c.begun)
	case !on && c.on:
		c.begun = make(chan struct{})
	}
	c.on, c.nodes = on, next
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// byErrand reports whether errands are on.
func (d *Discovery) byErrand() bool {
	d.carriers.mu.Lock()
	defer d.carriers.mu.Unlock()
	return d.carriers.on
}

// whileOpen returns a context that ends when errands begin, so that nothing goes
// on waiting for a table that is left alone; or nil if they are on. The caller
// calls stop.
func (d *Discovery) whileOpen(ctx context.Context) (open context.Context, stop func()) {
	c := d.carriers
	c.mu.Lock()
	on, begun := c.on, c.begun
	c.mu.Unlock()
	if on {
		return nil, nil
	}
	open, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-begun:
			cancel()
		case <-open.Done():
		}
	}()
	return open, cancel
}

func (c *carriers) list() []peer.AddrInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nodes)
}

// served puts a node that answered before the others.
func (c *carriers) served(id peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.nodes, func(n peer.AddrInfo) bool { return n.ID == id })
	if i <= 0 {
		return
	}
	info := c.nodes[i]
	c.nodes = slices.Insert(slices.Delete(c.nodes, i, i+1), 0, info)
}

// connected counts the carriers with an open connection.
func (d *Discovery) connected() (n int) {
	for _, info := range d.carriers.list() {
		if d.cfg.Host.Network().Connectedness(info.ID) == network.Connected {
			n++
		}
	}
	return n
}

// tendErrands keeps a connection to one carrier, for as long as errands are on.
func (d *Discovery) tendErrands(ctx context.Context) {
	pause := rejoinMin
	for ctx.Err() == nil && d.byErrand() {
		wait := errandTend
		if d.connected() == 0 {
			if d.reachCarrier(ctx) {
				pause = rejoinMin
			} else {
				pause = min(2*pause, errandPause)
				wait = jitter(pause)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-d.carriers.changed:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// reachCarrier connects to a carrier, trying another whenever one takes long.
func (d *Discovery) reachCarrier(ctx context.Context) (reached bool) {
	d.race(ctx, errandNext, func(ctx context.Context, info peer.AddrInfo, _ func()) (done, ok bool) {
		err := d.cfg.Host.Connect(ctx, info)
		return err == nil, err == nil
	}, func() { reached = true })
	return reached
}

// race has try called with one carrier after another, the next when one has
// failed, or has not come back for a while, which begins anew when it says that it
// got somewhere. It ends when one is done, and calls won before it returns; or when
// all have come back.
func (d *Discovery) race(ctx context.Context, patience time.Duration, try func(_ context.Context, _ peer.AddrInfo, somewhere func()) (done, ok bool), won func()) {
	ctx, cancel := context.WithTimeout(ctx, errandTime)
	var trying sync.WaitGroup
	defer trying.Wait()
	defer cancel()
	nodes := d.carriers.list()
	type result struct {
		id       peer.ID
		done, ok bool
	}
	results := make(chan result, len(nodes))
	got := make(chan struct{}, 1)
	somewhere := func() {
		select {
		case got <- struct{}{}:
		default:
		}
	}
	next, open := 0, 0
	start := func() {
		if next == len(nodes) {
			return
		}
		info := nodes[next]
		next++
		open++
		trying.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, errandTry)
			defer cancel()
			done, ok := try(ctx, info, somewhere)
			results <- result{info.ID, done, ok}
		})
	}
	start()
	timer := time.NewTicker(patience)
	defer timer.Stop()
	for open > 0 {
		select {
		case r := <-results:
			open--
			if r.ok {
				d.carriers.served(r.id)
			}
			if r.done {
				won()
				return
			}
			start()
			timer.Reset(patience)
		case <-got:
			timer.Reset(patience)
		case <-timer.C:
			start()
		case <-ctx.Done():
			return
		}
	}
}

// ask has one node do an errand. It calls connected when it is that.
func (d *Discovery) ask(ctx context.Context, info peer.AddrInfo, request errand.Frame, connected func()) (errand.Frame, error) {
	select {
	case d.carriers.places <- struct{}{}:
		defer func() { <-d.carriers.places }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := d.cfg.Host.Connect(ctx, info); err != nil {
		return nil, err
	}
	connected()
	return askErrand(ctx, d.cfg.Host, info, request)
}

func askErrand(ctx context.Context, from host.Host, info peer.AddrInfo, request errand.Frame) (errand.Frame, error) {
	answers, err := askErrands(ctx, from, info, []errand.Frame{request})
	if err != nil {
		return nil, err
	}
	if r, ok := answers[0].(*errand.Refused); ok {
		return nil, &errandRefusal{*r}
	}
	return answers[0], nil
}

// askErrands has one node do errands in their order, over one stream, up to the
// first that it refuses, and returns its answers. There is an error if there are
// fewer for another reason.
func askErrands(ctx context.Context, from host.Host, info peer.AddrInfo, requests []errand.Frame) (answers []errand.Frame, err error) {
	dial, cancel := context.WithTimeout(ctx, errandTry)
	defer cancel()
	if err := from.Connect(dial, info); err != nil {
		return nil, err
	}
	s, err := from.NewStream(dial, info.ID, libp2p.ID(errand.Protocol))
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Reset() }() // nothing, once all is answered and read
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	// What is on its way is no longer than a round of mail, and the answers to
	// it fit a stream's window: nobody waits for the other to read.
	for _, r := range requests {
		if err := s.SetWriteDeadline(time.Now().Add(errandTry)); err != nil {
			break
		}
		if _, err := s.Write(errand.AppendFrame(nil, r)); err != nil {
			break // it may have answered some all the same
		}
	}
	_ = s.CloseWrite() // reading says what is wrong
	in := bufio.NewReader(s)
	for range requests {
		if err = s.SetReadDeadline(time.Now().Add(errandTry)); err != nil {
			break
		}
		var a errand.Frame
		if a, err = errand.ReadAnswer(in); err != nil {
			break
		}
		answers = append(answers, a)
		if _, refused := a.(*errand.Refused); refused {
			break // it would keep the others waiting for the same
		}
	}
	return answers, err
}

// CarryMail has a community node bring a mailbox's requests to another one, in
// their order, and returns the mailbox's answers, which are for the caller to
// check. It is asked from a host that the node is to know us by. With an error the
// answers are those that came before.
func CarryMail(ctx context.Context, from host.Host, node peer.AddrInfo, address []byte, mails [][]byte) (answers [][]byte, err error) {
	requests := make([]errand.Frame, len(mails))
	for i, mail := range mails {
		requests[i] = &errand.Carry{Address: address, Mail: mail}
	}
	carried, err := askErrands(ctx, from, node, requests)
	for _, c := range carried {
		switch c := c.(type) {
		case *errand.Carried:
			answers = append(answers, c.Mail)
		case *errand.Refused:
			return answers, &errandRefusal{*c}
		default:
			return answers, errOddErrand
		}
	}
	return answers, err
}

var errOddErrand = errors.New("the community node answers what was not asked")

// errandRefusal is a node's word that it does not do an errand.
type errandRefusal struct{ errand.Refused }

func (*errandRefusal) Error() string { return "the community node does not do this errand" }

// announceByErrand is Announce by way of others.
func (d *Discovery) announceByErrand(ctx context.Context, point rendezvous.Point, record []byte) (Published, error) {
	request := &errand.Announce{Key: point.Key(), Record: record}
	var mu sync.Mutex
	var best Published
	d.race(ctx, errandNextAnnounce, func(ctx context.Context, info peer.AddrInfo, connected func()) (done, ok bool) {
		answer, err := d.ask(ctx, info, request, connected)
		kept, ok := answer.(*errand.Kept)
		if err != nil || !ok {
			return false, false
		}
		mu.Lock()
		defer mu.Unlock()
		if p := (Published{int(kept.Asked), int(kept.Stored), int(kept.Confirmed)}); p.Confirmed >= best.Confirmed {
			best = p
		}
		return kept.Confirmed > 0, true
	}, func() {})
	mu.Lock()
	defer mu.Unlock()
	switch {
	case best.Asked == 0:
		return best, ErrNoPeers
	case best.Confirmed == 0:
		return best, errNotKept
	}
	return best, nil
}

// findByErrand is Find by way of others. A node that has nothing does not end
// it: the next may be more honest.
func (d *Discovery) findByErrand(ctx context.Context, points []rendezvous.Point) (Found, error) {
	request := &errand.Find{}
	for _, p := range points[:min(len(points), errand.MaxKeys)] {
		request.Keys = append(request.Keys, p.Key())
	}
	var mu sync.Mutex
	var best *hit
	answered := false
	d.race(ctx, errandNext, func(ctx context.Context, info peer.AddrInfo, connected func()) (done, ok bool) {
		answer, err := d.ask(ctx, info, request, connected)
		records, ok := answer.(*errand.Records)
		if err != nil || !ok {
			return false, false
		}
		mu.Lock()
		defer mu.Unlock()
		answered = true
		for _, r := range records.Records {
			if int(r.Index) >= len(request.Keys) {
				return false, false
			}
			h, ok := d.read(int(r.Index), points[r.Index], r.Value)
			if ok && (best == nil || h.found.Seq > best.found.Seq) {
				best = &h
			}
		}
		return best != nil, true
	}, func() {})
	mu.Lock()
	defer mu.Unlock()
	switch {
	case best != nil:
		d.floors.raise(best.key, best.found.Seq)
		return best.found, nil
	case ctx.Err() != nil:
		return Found{}, ctx.Err()
	case answered:
		return Found{}, ErrNotFound
	}
	return Found{}, ErrNoPeers
}

// ErrNotCarried is what Config.Carry returns for a request that is never carried.
var ErrNotCarried = errors.New("only deposits and audits are carried, to nodes that may be dialled")
