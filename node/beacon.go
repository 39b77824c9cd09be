package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/invite"
	"github.com/kith-im/kith/protocol/rendezvous"
)

const (
	// Records live recordLife and are renewed after announceMin to
	// announceMax, at random: a rhythm would be a fingerprint.
	recordLife  = 24 * time.Hour
	announceMin = 6 * time.Hour
	announceMax = 12 * time.Hour

	// announceRetry is the pause after a round in which a record found no
	// place, and announceAtOnce how many records are on their way at one time.
	announceRetry  = 30 * time.Second
	announceAtOnce = 4

	// keepWays is how many community nodes are kept for the next run.
	keepWays = 32
)

// beacon announces where we are: to each contact at the points of the pair,
// and to the holders of each open invite at the invite's, with the keys to
// answer it.
type beacon struct {
	n       *Node
	changed chan struct{}

	mu     sync.Mutex
	result published
}

// published is how the last round went.
type published struct {
	kept int // points whose record another node gave back
	goal int
}

func newBeacon(n *Node) *beacon { return &beacon{n: n, changed: make(chan struct{}, 1)} }

// wake has the beacon announce again, because something changed.
func (b *beacon) wake() { poke(b.changed) }

// waysIn tells discovery of the community nodes that an invite named.
func (b *beacon) waysIn(hints [][]byte) {
	var infos []peer.AddrInfo
	for _, h := range hints {
		a, err := ma.NewMultiaddrBytes(h)
		if err != nil {
			continue
		}
		if info, err := peer.AddrInfoFromP2pAddr(a); err == nil {
			infos = append(infos, *info)
		}
	}
	if len(infos) > 0 {
		b.n.cfg.Discovery.AddWaysIn(infos)
	}
}

func (b *beacon) status() published {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.result
}

// run announces until ctx ends: at once, when something changed, and before
// the records run out.
func (b *beacon) run(ctx context.Context) {
	moved := make(<-chan any)
	if sub, err := b.n.cfg.Host.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated), eventbus.Name("beacon")); err == nil {
		defer sub.Close()
		moved = sub.Out()
	}
	for {
		next := announceMin + rand.N(announceMax-announceMin)
		if !b.announce(ctx) {
			next = announceRetry/2 + rand.N(announceRetry)
		}
		// At midnight tomorrow's records become today's, and new ones are due.
		if midnight := untilTomorrow(b.n.now()); midnight < next {
			next = midnight
		}
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-b.changed:
		case <-moved:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

func untilTomorrow(now time.Time) time.Duration {
	tomorrow := time.Unix((rendezvous.Day(now)+1)*24*60*60, 0)
	return tomorrow.Sub(now) + rand.N(time.Minute)
}

// announcement is one record for one point.
type announcement struct {
	point  rendezvous.Point
	record []byte
}

// announce publishes every record once and says whether all found a place.
func (b *beacon) announce(ctx context.Context) bool {
	var all []announcement
	err := b.n.update(ctx, func(w *work) (err error) {
		all, err = w.announcements()
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			b.n.log.Warn("our records could not be made; it is tried again", "cause", err)
		}
		return false
	}
	var kept int
	var mu sync.Mutex
	places := make(chan struct{}, announceAtOnce)
	var round sync.WaitGroup
	for _, a := range all {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			round.Wait()
			return false
		}
		round.Go(func() {
			defer func() { <-places }()
			p, err := b.n.cfg.Discovery.Announce(ctx, a.point, a.record)
			if err == nil && p.Confirmed > 0 {
				mu.Lock()
				kept++
				b.result = published{kept: max(kept, b.result.kept), goal: len(all)}
				mu.Unlock()
			}
		})
	}
	round.Wait()
	b.mu.Lock()
	b.result = published{kept: kept, goal: len(all)}
	b.mu.Unlock()
	b.n.log.Debug("announced", "kept", kept, "goal", len(all))
	return kept == len(all)
}

// announcements makes the records of today and tomorrow.
func (w *work) announcements() ([]announcement, error) {
	body, err := w.n.whereWeAre()
	if err != nil {
		return nil, err
	}
	var all []announcement
	today := rendezvous.Day(w.now)
	hash := w.n.self.device.Hash()
	publish := func(secret protocol.RendezvousSecret, body rendezvous.Body) error {
		for day := today; day <= today+1; day++ {
			for _, p := range rendezvous.Derive(secret, hash, day) {
				key := p.Key()
				seq, err := w.tx.NextPointSeq(key[:], day)
				if err != nil {
					return err
				}
				record, err := p.Seal(seq, w.now.Add(recordLife), body)
				if err != nil {
					return err
				}
				all = append(all, announcement{p, record})
			}
		}
		return nil
	}
	contacts, err := w.tx.Contacts()
	if err != nil {
		return nil, err
	}
	silent := make(map[int64]bool) // those who are not to find us
	for _, c := range contacts {
		silent[c.ID] = c.Blocked || c.State == store.ContactRequest
	}
	invites, err := w.tx.Invites()
	if err != nil {
		return nil, err
	}
	epoch, err := counter(w.tx, metaEpoch, 1)
	if err != nil {
		return nil, err
	}
	for _, i := range invites {
		if i.State != store.InviteOpen || !answerable(i, w.now) {
			continue
		}
		link, err := invite.Parse(string(i.Link))
		if err != nil {
			return nil, errors.Join(store.ErrDamaged, err)
		}
		with := body
		if i.Expires > w.ms() { // after that only who has answered finds us
			bundle, err := w.bundle(i, link, epoch)
			if err != nil {
				return nil, err
			}
			with.Bundle = bundle.Marshal()
		}
		if err := publish(link.Keys().Rendezvous, with); err != nil {
			return nil, err
		}
	}
	devices, err := w.tx.Devices(0)
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		if d.Pair == nil || silent[d.Contact] {
			continue
		}
		if err := publish(protocol.SharedFromPair(protocol.PairSecret(d.Pair)).Rendezvous, body); err != nil {
			return nil, err
		}
	}
	return all, w.tx.ForgetPoints(today - 1)
}

// whereWeAre is what our records say of us: the addresses we listen on.
func (n *Node) whereWeAre() (rendezvous.Body, error) {
	addrs, err := n.cfg.Host.ListenAddrs()
	if err != nil {
		return rendezvous.Body{}, err
	}
	var body rendezvous.Body
	for _, a := range sortAddresses(addrs) {
		full := a.Encapsulate(n.p2p()).Bytes()
		if len(full) <= protocol.MaxAddress && len(body.Addresses) < maxRemembered {
			body.Addresses = append(body.Addresses, full)
		}
	}
	return body, nil
}
