package discovery

import (
	"bufio"
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"

	"github.com/kith-im/kith/protocol/errand"
	"github.com/kith-im/kith/protocol/rendezvous"
)

// Limits of docs/spec/errand.md, section 5. One look-up asks some forty nodes;
// these keep the questions that all of them send below 1,300 a second.
const (
	errandPeerStreams = 8
	errandStreams     = 256
	// errandPeerBurst is one start with forty contacts; errandPeerRate one
	// look-up every two seconds after it. All of a prefix of addresses may ask for
	// errandNear times as much: names cost nothing.
	errandPeerBurst = 256
	errandPeerRate  = 0.5
	errandNear      = 8
	errandBurst     = 1024
	errandRate      = 32
	errandWorkers   = 32 // look-ups and publications at one time
	errandCarried   = 64 // requests carried at one time, 8 MiB of them
	// errandCarry is what carrying a request counts beside a look-up, which asks
	// dozens of nodes where that asks one.
	errandCarry   = 1. / 16
	errandSources = 8192
	// errandMemory is what one stream may take, for as long as it lasts: the largest
	// request, the answer's buffer and the reader's. With all of errandStreams it is a
	// sixth of transport.CommunityMemory; a node that has less takes fewer streams.
	errandMemory = errand.MaxRequest + 32<<10

	errandIdle  = 60 * time.Second // between frames
	errandFrame = 10 * time.Second // from a frame's first byte to its last
	errandServe = 15 * time.Second // one request
)

// errandServer does errands for others.
type errandServer struct {
	d       *Discovery
	ctx     context.Context //nolint:containedctx // stream handlers get none
	cancel  context.CancelFunc
	serving sync.WaitGroup
	working chan struct{}
	carried chan struct{}

	mu      sync.Mutex
	closed  bool
	streams int
	peers   map[peer.ID]*errandSource
	near    map[netip.Prefix]*errandSource
	all     errandSource
}

// errandSource is what one peer, one prefix of addresses, or everybody has
// asked for.
type errandSource struct {
	streams int
	spent   float64 // of the burst, as of last
	last    time.Time
}

// settle forgives what the rate has given back.
func (s *errandSource) settle(now time.Time, rate float64) {
	s.spent = max(0, s.spent-now.Sub(s.last).Seconds()*rate)
	s.last = now
}

func newErrandServer(d *Discovery) *errandServer {
	ctx, cancel := context.WithCancel(context.Background())
	s := &errandServer{
		d: d, ctx: ctx, cancel: cancel,
		working: make(chan struct{}, errandWorkers), carried: make(chan struct{}, errandCarried),
		peers: make(map[peer.ID]*errandSource), near: make(map[netip.Prefix]*errandSource),
	}
	d.cfg.Host.SetStreamHandler(libp2p.ID(errand.Protocol), s.handle)
	return s
}

// close ends all errands and returns when they have.
func (s *errandServer) close() {
	s.d.cfg.Host.RemoveStreamHandler(libp2p.ID(errand.Protocol))
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.serving.Wait()
}

// visitor is one stream's place among the sources.
type visitor struct {
	id     peer.ID
	prefix netip.Prefix
	addr   string // its prefix as the record store counts it
	peer   *errandSource
	near   *errandSource
}

// enter counts a stream, or returns nil if there are too many.
func (s *errandServer) enter(c network.Conn) *visitor {
	v := &visitor{id: c.RemotePeer(), addr: string(c.RemotePeer())}
	if p, ok := addrPrefix(c.RemoteMultiaddr(), 24, 48); ok {
		v.prefix = p
	}
	// Behind the operator's own web server everybody comes from this machine.
	if p, ok := addrPrefix(c.RemoteMultiaddr(), 32, 64); ok && !p.Addr().IsLoopback() {
		v.addr = p.String()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.streams >= errandStreams {
		return nil
	}
	now := time.Now()
	if len(s.peers) >= errandSources || len(s.near) >= errandSources {
		s.forgetLocked(now)
	}
	if v.peer = s.peers[v.id]; v.peer == nil {
		v.peer = &errandSource{last: now}
	}
	if v.near = s.near[v.prefix]; v.near == nil {
		v.near = &errandSource{last: now}
	}
	if v.peer.streams >= errandPeerStreams || v.near.streams >= errandNear*errandPeerStreams ||
		len(s.peers) >= errandSources || len(s.near) >= errandSources {
		return nil
	}
	s.peers[v.id], s.near[v.prefix] = v.peer, v.near
	s.streams++
	v.peer.streams++
	v.near.streams++
	s.serving.Add(1)
	return v
}

// forgetLocked drops the sources that owe nothing.
func (s *errandServer) forgetLocked(now time.Time) {
	for id, p := range s.peers {
		if p.settle(now, errandPeerRate); p.streams == 0 && p.spent == 0 {
			delete(s.peers, id)
		}
	}
	for at, p := range s.near {
		if p.settle(now, errandNear*errandPeerRate); p.streams == 0 && p.spent == 0 {
			delete(s.near, at)
		}
	}
}

func (s *errandServer) leave(v *visitor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
	v.peer.streams--
	v.near.streams--
	s.serving.Done()
}

// spend takes n look-ups from everybody's allowances, or says for how long they
// are used up.
func (s *errandServer) spend(v *visitor, cost float64) (refused *errand.Refused) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, a := range []struct {
		source      *errandSource
		burst, rate float64
		why         errand.Refusal
	}{
		{v.peer, errandPeerBurst, errandPeerRate, errand.RefusedLimit},
		{v.near, errandNear * errandPeerBurst, errandNear * errandPeerRate, errand.RefusedLimit},
		{&s.all, errandBurst, errandRate, errand.RefusedBusy},
	} {
		a.source.settle(now, a.rate)
		if over := a.source.spent + cost - a.burst; over > 0 {
			return &errand.Refused{Why: a.why, After: time.Duration(over/a.rate+1) * time.Second}
		}
	}
	for _, source := range []*errandSource{v.peer, v.near, &s.all} {
		source.spent += cost
	}
	return nil
}

// handle serves a stream until it ends.
func (s *errandServer) handle(stream network.Stream) {
	if stream.Scope().ReserveMemory(errandMemory, network.ReservationPriorityMedium) != nil {
		_ = stream.Reset()
		return
	}
	v := s.enter(stream.Conn())
	if v == nil {
		_ = stream.Reset()
		return
	}
	defer s.leave(v)
	stop := context.AfterFunc(s.ctx, func() { _ = stream.Reset() })
	defer stop()
	in := bufio.NewReader(stream)
	for {
		request, err := readErrand(stream, in)
		if err != nil {
			break
		}
		ctx, cancel := context.WithTimeout(s.ctx, errandServe)
		answer := s.serve(ctx, v, request)
		cancel()
		if stream.SetWriteDeadline(time.Now().Add(errandFrame)) != nil {
			break
		}
		if _, err := stream.Write(errand.AppendFrame(nil, answer)); err != nil {
			break
		}
	}
	// Either everything that was asked is answered, or something broke the rules
	// or timed out; a half-closed stream of the first kind ends here as well.
	_ = stream.Close()
	_ = stream.CloseRead()
}

// readErrand gives a request errandIdle to begin and errandFrame to end.
func readErrand(stream network.Stream, in *bufio.Reader) (errand.Frame, error) {
	if err := stream.SetReadDeadline(time.Now().Add(errandIdle)); err != nil {
		return nil, err
	}
	if _, err := in.Peek(1); err != nil {
		return nil, err
	}
	if err := stream.SetReadDeadline(time.Now().Add(errandFrame)); err != nil {
		return nil, err
	}
	return errand.ReadRequest(in)
}

// serve does one errand (docs/spec/errand.md, section 4).
func (s *errandServer) serve(ctx context.Context, v *visitor, request errand.Frame) errand.Frame {
	switch r := request.(type) {
	case *errand.Find:
		return s.find(ctx, v, r)
	case *errand.Announce:
		return s.announce(ctx, v, r)
	case *errand.Carry:
		return s.carry(ctx, v, r)
	}
	return &errand.Refused{Why: errand.RefusedInvalid}
}

// work waits for a place among the look-ups.
func (s *errandServer) work(ctx context.Context) (done func(), ok bool) {
	select {
	case s.working <- struct{}{}:
		return func() { <-s.working }, true
	case <-ctx.Done():
		return nil, false
	}
}

func (s *errandServer) find(ctx context.Context, v *visitor, r *errand.Find) errand.Frame {
	if refused := s.spend(v, float64(len(r.Keys))); refused != nil {
		return refused
	}
	found := make([][]byte, len(r.Keys))
	var looking sync.WaitGroup
	for i, key := range r.Keys {
		looking.Go(func() {
			if done, ok := s.work(ctx); ok {
				defer done()
				found[i] = s.d.newest(ctx, key)
			}
		})
	}
	looking.Wait()
	out := &errand.Records{}
	if i, err := rendezvous.Select(found); err == nil { // none is as long as no record
		out.Records = []errand.Record{{Index: uint8(i), Value: found[i]}}
	}
	return out
}

// newest returns the newest valid record under a key, or nil: of those that come
// within grace of the first, and our own.
func (d *Discovery) newest(ctx context.Context, key [32]byte) (best []byte) {
	if own := d.table.records.value(tableKey(key)); own != nil && d.table.validate(key, own) == nil {
		best = own
	}
	if d.table.size() == 0 { // the first community node of a network knows no other
		return best
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var ends sync.Once
	d.table.search(ctx, key, func(_ peer.ID, record []byte) {
		if record == nil || d.table.validate(key, record) != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if best != nil {
			if i, err := rendezvous.Select([][]byte{best, record}); err != nil || i == 0 {
				record = best
			}
		}
		best = record
		ends.Do(func() {
			timer := time.AfterFunc(grace, cancel)
			context.AfterFunc(ctx, func() { timer.Stop() })
		})
	})
	return best
}

func (s *errandServer) announce(ctx context.Context, v *visitor, r *errand.Announce) errand.Frame {
	if s.d.table.validate(r.Key, r.Record) != nil {
		return &errand.Refused{Why: errand.RefusedInvalid}
	}
	if refused := s.spend(v, 1); refused != nil {
		return refused
	}
	done, ok := s.work(ctx)
	if !ok {
		return &errand.Refused{Why: errand.RefusedBusy, After: errandServe}
	}
	defer done()
	out := &errand.Kept{Asked: 1}
	if s.d.table.records.admit(tableKey(r.Key), r.Record, string(v.id), v.addr) == nil {
		out.Stored, out.Confirmed = 1, 1
	}
	if s.d.table.size() > 0 {
		ctx, cancel := context.WithTimeout(ctx, announceTime)
		defer cancel()
		p := s.d.table.publish(ctx, r.Key, r.Record)
		out.Asked += uint8(p.Asked) // at most closest
		out.Stored += uint8(p.Stored)
		out.Confirmed += uint8(p.Confirmed)
	}
	return out
}

func (s *errandServer) carry(ctx context.Context, v *visitor, r *errand.Carry) errand.Frame {
	if s.d.cfg.Carry == nil {
		return &errand.Refused{Why: errand.RefusedInvalid}
	}
	if refused := s.spend(v, errandCarry); refused != nil {
		return refused
	}
	select {
	case s.carried <- struct{}{}:
		defer func() { <-s.carried }()
	case <-ctx.Done():
		return &errand.Refused{Why: errand.RefusedBusy, After: errandServe}
	}
	mail, err := s.d.cfg.Carry(ctx, r.Address, r.Mail)
	switch {
	case errors.Is(err, ErrNotCarried):
		return &errand.Refused{Why: errand.RefusedInvalid}
	case err != nil:
		return &errand.Refused{Why: errand.RefusedUnreachable}
	}
	return &errand.Carried{Mail: mail}
}
