package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
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
	// Where bytes cost money they are renewed as late as is safe.
	announceMeteredMin = 16 * time.Hour
	announceMeteredMax = 20 * time.Hour

	// Tomorrow's records are there at midnight; those of the day after follow
	// within midnightSpread, so that not everybody announces at once.
	midnightSpread = 3 * time.Hour

	// Records that found no place are tried again after retryAnnounceMin,
	// doubling to retryAnnounceMax. announceAtOnce are on their way at one time.
	retryAnnounceMin = 15 * time.Second
	retryAnnounceMax = 10 * time.Minute
	announceAtOnce   = 4

	// After an announcement nothing is announced anew for restShare times as long as it
	// took: each takes all of a slow line, and at first something changes all the time.
	// It is restMax at most: one that nobody answered takes as long as it is waited for,
	// and says nothing of the line, and records that name a lost relay lead nowhere.
	restShare = 2
	restMax   = time.Minute

	// lookAround is how often our own addresses are looked at: libp2p says
	// nothing of changes to addresses that it does not publish.
	lookAround = 5 * time.Second

	// A record of ours is looked for, as a contact would, after proofMin to
	// proofMax: community nodes come and go, and forget when they do.
	proofMin = 10 * time.Minute
	proofMax = 20 * time.Minute

	// keepWays is how many addresses of community nodes are kept for the next run.
	keepWays = 64
)

// beacon announces where we are: to each contact at the points of the pair,
// and to the holders of each open invite at the invite's, with the keys to
// answer it. One goroutine runs it.
type beacon struct {
	n       *Node
	changed chan struct{}
	anew    atomic.Bool // records that are in place say what is not true any more

	mu     sync.Mutex
	result published
	under  chan struct{} // closed when the round under way is over; nil: there is none
}

// published is how far the announcing has come.
type published struct {
	kept int // points whose record another node gave back
	goal int
}

func newBeacon(n *Node) *beacon { return &beacon{n: n, changed: make(chan struct{}, 1)} }

// wake has the beacon look for what is new to announce.
func (b *beacon) wake() { poke(b.changed) }

// renew has the beacon announce everything anew.
func (b *beacon) renew() {
	b.anew.Store(true)
	poke(b.changed)
}

// restAfter is until when nothing is announced anew after what began then and is over.
func restAfter(began time.Time) time.Time {
	return time.Now().Add(min(restShare*time.Since(began), restMax))
}

// renewed says whether everything is to be announced anew now. If it is, but not
// before rest, run is woken then.
func (b *beacon) renewed(rest time.Time) bool {
	if !b.anew.Load() {
		return false
	}
	wait := time.Until(rest)
	if wait > 0 {
		time.AfterFunc(wait, func() { poke(b.changed) })
	}
	return wait <= 0
}

// begin says that a round of announcing is under way, until over is called.
func (b *beacon) begin() (over func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	under := make(chan struct{})
	b.under = under
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.under = nil
		close(under)
	}
}

// round is closed as soon as no announcing is under way.
func (b *beacon) round() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.under == nil {
		return closed
	}
	return b.under
}

func (b *beacon) status() published {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.result
}

// run announces until ctx ends: what is new at once, what found no place again
// soon, and everything when our addresses change and before the records run out.
func (b *beacon) run(ctx context.Context) {
	soon := time.NewTimer(relaysSoon)
	select {
	case <-b.n.relays.settled:
	case <-soon.C:
	case <-ctx.Done():
	}
	soon.Stop()
	around := time.NewTicker(lookAround)
	defer around.Stop()
	here := b.place()
	done := make(map[[32]byte]rendezvous.Point) // points whose record is in place
	proof := time.NewTimer(b.n.leisurely(proofMin + rand.N(proofMax-proofMin)))
	defer proof.Stop()
	alone := false
	renew := time.NewTimer(b.renewal())
	defer renew.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	pause := retryAnnounceMin
	var rest time.Time // nothing is announced anew before
	afresh := func() {
		b.anew.Store(false)
		clear(done)
	}
	for {
		select {
		case <-b.changed:
			if b.renewed(rest) {
				afresh()
			}
		case <-retry.C:
		case <-renew.C:
			afresh()
			renew.Reset(b.renewal())
		case <-around.C:
			was, wasAlone := here, alone
			here = b.place()
			alone = b.n.cfg.Discovery.Status().Peers == 0
			moved, lost := here.since(was)
			switch {
			case moved:
				// What went out from there hangs until a timeout, but for what goes
				// through bridges, which goes on from anywhere.
				if lost && here.mode == transport.Open {
					b.n.cfg.Host.Drop()
					b.n.cfg.Discovery.Drop()
				}
				b.n.relays.readdressed()
				b.n.revive(ctx)
			case wasAlone && !alone: // they may have forgotten us
			default:
				continue
			}
			afresh()
		case <-proof.C:
			proof.Reset(b.n.leisurely(proofMin + rand.N(proofMax-proofMin)))
			if b.proven(ctx, done) {
				continue
			}
			afresh()
		case <-ctx.Done():
			return
		}
		over := b.begin()
		if !b.settle(ctx) {
			over()
			return
		}
		began := time.Now()
		complete := b.announce(ctx, done)
		over()
		rest = restAfter(began)
		if complete {
			pause = retryAnnounceMin
			continue
		}
		retry.Reset(pause/2 + rand.N(pause))
		pause = min(2*pause, retryAnnounceMax)
	}
}

// proven says whether one of our records is found where it was left.
func (b *beacon) proven(ctx context.Context, done map[[32]byte]rendezvous.Point) bool {
	for _, p := range done { // any one
		_, err := b.n.cfg.Discovery.Find(ctx, []rendezvous.Point{p})
		return err == nil || !errors.Is(err, discovery.ErrNotFound)
	}
	return true
}

// renewal is when all records are announced anew: before they run out, and
// some time after midnight, when the next day's are due.
func (b *beacon) renewal() time.Duration {
	now := b.n.now()
	midnight := time.Unix((rendezvous.Day(now)+1)*24*60*60, 0)
	after := announceMin + rand.N(announceMax-announceMin)
	if b.n.metered() {
		after = announceMeteredMin + rand.N(announceMeteredMax-announceMeteredMin)
	}
	return min(after, midnight.Sub(now)+rand.N(midnightSpread))
}

// place is where the machine is, as far as its addresses say.
type place struct {
	mode      transport.Mode // another has other addresses, wherever it is
	addresses []string
}

func (b *beacon) place() (p place) {
	mode, addrs, err := b.n.cfg.Host.Place()
	p.mode = mode
	if err != nil {
		return p
	}
	for _, a := range sortAddresses(addrs) {
		p.addresses = append(p.addresses, a.String())
	}
	return p
}

// since says whether the machine has moved since it was in another place, and
// whether an address was lost. Another mode is no move: who changed it saw to the
// connections, and those it left are good.
func (p place) since(was place) (moved, lost bool) {
	if p.mode != was.mode {
		return false, false
	}
	lost = slices.ContainsFunc(was.addresses, func(a string) bool { return !slices.Contains(p.addresses, a) })
	return lost || len(p.addresses) != len(was.addresses), lost
}

// audience is one group that looks for us under one secret.
type audience struct {
	secret protocol.RendezvousSecret
	bundle []byte    // for those who hold an invite
	direct bool      // they may know our own address, and not relays alone
	hidden bool      // the user hides it from them, also on a local network
	ways   []peer.ID // bridges that they were told of
}

// settle waits for a rush to end, and after it a moment for our relays: without them
// our records would be made twice.
func (b *beacon) settle(ctx context.Context) bool {
	select {
	case <-b.n.rush.none():
		return ctx.Err() == nil
	default:
	}
	select {
	case <-b.n.relays.retold:
	default:
	}
	if b.n.rush.wait(ctx) != nil {
		return false
	}
	soon := time.NewTimer(relaysAfter)
	defer soon.Stop()
	select {
	case <-b.n.relays.retold:
	case <-soon.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// announce publishes the records that are not in place and says whether all are.
func (b *beacon) announce(ctx context.Context, done map[[32]byte]rendezvous.Point) bool {
	type announcement struct {
		point rendezvous.Point
		key   [32]byte
		day   int64
		body  rendezvous.Body
		seq   uint64
	}
	var audiences []audience
	err := b.n.update(ctx, func(w *work) (err error) {
		audiences, err = w.audiences()
		return err
	})
	where, whereErr := b.n.whereWeAre(ctx)
	if err = errors.Join(err, whereErr); err != nil {
		if ctx.Err() == nil {
			b.n.log.Warn("our records could not be made; it is tried again", "cause", err)
			b.report(0, max(1, b.status().goal))
		}
		return false
	}
	var due []announcement
	today, goal := rendezvous.Day(b.n.now()), 0
	for _, a := range audiences {
		body := where.to(a)
		for day := today; day <= today+1; day++ {
			for _, p := range rendezvous.Derive(a.secret, b.n.self.device.Hash(), day) {
				goal++
				if _, ok := done[p.Key()]; !ok {
					due = append(due, announcement{point: p, key: p.Key(), day: day, body: body})
				}
			}
		}
	}
	b.report(goal-len(due), goal)
	if len(due) == 0 {
		return true
	}
	if err := b.n.update(ctx, func(w *work) (err error) {
		for i := range due {
			if due[i].seq, err = w.tx.NextPointSeq(due[i].key[:], due[i].day); err != nil {
				return err
			}
		}
		return w.tx.ForgetPoints(today - 1)
	}); err != nil {
		return false
	}
	var mu sync.Mutex
	places := make(chan struct{}, announceAtOnce)
	var round sync.WaitGroup
	for _, a := range due {
		places <- struct{}{}
		round.Go(func() {
			defer func() { <-places }()
			record, err := a.point.Seal(a.seq, b.n.now().Add(recordLife), a.body)
			if err != nil {
				b.n.log.Warn("a record of ours could not be sealed", "cause", err)
				return
			}
			p, err := b.n.cfg.Discovery.Announce(ctx, a.point, record)
			if err != nil || p.Confirmed == 0 {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			done[a.key] = a.point
			b.mu.Lock()
			defer b.mu.Unlock()
			b.result.kept++
		})
	}
	round.Wait()
	kept := b.status().kept
	b.n.log.Debug("announced", "due", len(due), "kept", kept, "goal", goal)
	return kept == goal
}

func (b *beacon) report(kept, goal int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result = published{kept, goal}
}

// audiences are all who are to find us, each with what it is to find besides
// our addresses.
func (w *work) audiences() ([]audience, error) {
	var out []audience
	contacts, err := w.tx.Contacts()
	if err != nil {
		return nil, err
	}
	whose := make(map[int64]store.ContactRow)
	for _, c := range contacts {
		whose[c.ID] = c
	}
	invites, err := w.tx.Invites()
	if err != nil {
		return nil, err
	}
	epoch, err := counter(w.tx, metaEpoch)
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
		a := audience{secret: link.Keys().Rendezvous, direct: !i.Reusable && !w.n.cfg.HideAddress, hidden: w.n.cfg.HideAddress, ways: bridgeIDs(link.Hints)}
		if i.Expires > w.ms() { // after that only who has answered finds us
			bundle, err := w.bundle(i, link, epoch)
			if err != nil {
				return nil, err
			}
			a.bundle = bundle.Marshal()
		}
		out = append(out, a)
	}
	devices, err := w.tx.Devices(0)
	if err != nil {
		return nil, err
	}
	rows, err := w.tx.Bridges()
	if err != nil {
		return nil, err
	}
	bridges := bridgeBytes(rows)
	for _, d := range devices {
		c := whose[d.Contact]
		if c.Blocked || c.State == store.ContactRequest {
			continue // they are not to find us
		}
		direct, err := w.n.direct(c, d)
		if err != nil {
			return nil, err
		}
		pairs, err := w.tx.Pairs(d.Hash)
		if err != nil {
			return nil, err
		}
		for _, p := range pairs {
			out = append(out, audience{secret: protocol.SharedFromPair(protocol.PairSecret(p)).Rendezvous, direct: direct, hidden: w.n.hides(c), ways: waysTold(c, d, bridges)})
		}
	}
	return out, nil
}

// whereabouts are what our records say of us.
type whereabouts struct {
	direct  [][]byte           // the addresses we listen on
	relayed [][]byte           // those that lead through relays
	doors   map[peer.ID][]byte // those that lead through a bridge, for who knows it
	fields  []rendezvous.Field
}

// to is what one audience is told (docs/spec/roads.md, section 3): as many of
// the addresses, the best of each kind, as fit beside the rest.
func (w whereabouts) to(a audience) rendezvous.Body {
	direct, relayed := w.direct, [][]byte(nil)
	if !a.direct {
		direct = nil
	}
	for _, id := range a.ways {
		if door, ok := w.doors[id]; ok {
			relayed = append(relayed, door)
		}
	}
	relayed = append(relayed, w.relayed...)
	relayed = relayed[:min(len(relayed), maxRelayed)]
	for {
		body := rendezvous.Body{Addresses: slices.Concat(direct, relayed), Bundle: a.bundle, Fields: w.fields}
		_, err := body.Marshal()
		switch {
		case err == nil || len(direct)+len(relayed) == 0:
			return body
		case len(relayed) >= len(direct):
			relayed = relayed[:len(relayed)-1]
		default:
			direct = direct[:len(direct)-1]
		}
	}
}

// whereWeAre returns what our records say of us: where we listen, the relays we
// are reached through, and our mailboxes.
func (n *Node) whereWeAre(ctx context.Context) (w whereabouts, err error) {
	add := func(to *[][]byte, most int, a ma.Multiaddr) {
		full := a.Encapsulate(n.p2p()).Bytes()
		if len(full) <= protocol.MaxAddress && len(*to) < most {
			*to = append(*to, full)
		}
	}
	addrs, err := n.cfg.Host.ListenAddrs()
	if err != nil {
		return w, err
	}
	for _, a := range sortAddresses(addrs) {
		add(&w.direct, maxDirect, a)
	}
	for _, a := range n.relays.addresses() {
		add(&w.relayed, maxRelayed, a)
	}
	w.doors = make(map[peer.ID][]byte)
	for _, id := range n.relays.open() {
		w.doors[id] = transport.Circuit(peer.AddrInfo{ID: id})[0].Encapsulate(n.p2p()).Bytes()
	}
	return w, n.view(ctx, func(tx *store.Tx) error {
		set, err := mailSet(tx)
		if err == nil && set != nil {
			w.fields = []rendezvous.Field{{Type: rendezvous.FieldMailboxes, Value: set}}
		}
		return err
	})
}
