package node

// The relays through which contacts reach us when our address is no use to them,
// or not for them to know. We ask two community nodes for a reservation each,
// keep the connections on which they live, and name them in our records
// (docs/spec/roads.md, section 2). Outside a censored network we do the same at
// bridges that we name to others: inside they may come through nothing else.

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

const (
	// relaysWanted is how many relays we are to be reached through: one may fail.
	relaysWanted = 2

	// A reservation is renewed after renewMin to renewMax, at random.
	renewMin = 30 * time.Minute
	renewMax = time.Hour

	// While reservations are lacking, nodes are asked after relayRetryMin,
	// doubling to relayRetryMax, and one that refused not before relayRest.
	relayRetryMin = time.Second
	relayRetryMax = 10 * time.Minute
	relayRest     = 5 * time.Minute

	// In censored mode there is hardly another one to ask, and nobody reaches us without:
	// pauses and rests are no longer than relayRestFew. They are not short either, since a
	// bridge may be blocked for days, and be seen to be knocked at.
	relayRestFew = 2 * time.Minute

	// A bridge that we wait at, and whose connection ends within doorTime, is taken for
	// one that refused: there is no other to ask in its place.
	doorTime = time.Minute

	// Whether we can be dialled is asked every reachableMin to reachableMax, and when our
	// addresses have changed.
	reachableMin = time.Hour
	reachableMax = 2 * time.Hour

	// relaysSoon bounds how long the first announcement waits for the first
	// reservations, so that it need not be made twice.
	relaysSoon = 1500 * time.Millisecond
	// relaysAfter is the same after a rush, on what may be a slow line.
	relaysAfter = 6 * time.Second
)

// relays are our reservations. One goroutine runs them.
type relays struct {
	n       *Node
	changed chan struct{}
	anew    atomic.Bool   // our addresses have changed
	forgive atomic.Bool   // who refused may be asked
	settled chan struct{} // closed when nodes were asked for the first time
	// retold has something when they changed since somebody looked.
	retold chan struct{}

	// These are run's own.
	refused map[peer.ID]time.Time // not asked before
	probe   time.Time             // whether we can be dialled is asked then
	dialled bool                  // we can be

	mu     sync.Mutex
	held   map[peer.ID]reservation
	told   []ma.Multiaddr // what our records are to say, as of the last review
	spared bool           // we need none for everybody
}

// reservation is one that a community node made us.
type reservation struct {
	info  peer.AddrInfo // how the relay is dialled
	renew time.Time
	since time.Time     // when it was made or renewed
	ahead time.Duration // by how much its clock is before ours
	door  bool          // it is a bridge at which we wait for those to whom we name it
}

// general reports whether a reservation is for everybody. Where others dial what they
// like, one at a bridge is of use to those alone who know it, and its name nothing for
// the rest.
func (r *relays) general(h reservation) bool {
	return len(h.info.Addrs) > 0 || !h.door && r.n.modes.censored()
}

func newRelays(n *Node) *relays {
	return &relays{
		n: n, changed: make(chan struct{}, 1), settled: make(chan struct{}), retold: make(chan struct{}, 1),
		refused: make(map[peer.ID]time.Time), held: make(map[peer.ID]reservation),
	}
}

// wake has everything looked at anew: who is to know our address has changed.
func (r *relays) wake() { poke(r.changed) }

// rerouted is wake for when nodes are reached in another way.
func (r *relays) rerouted() {
	r.forgive.Store(true)
	poke(r.changed)
}

// readdressed is wake for when our addresses have changed.
func (r *relays) readdressed() {
	r.anew.Store(true)
	poke(r.changed)
}

// addresses are those under which contacts dial us through relays, without our
// own name, in an order that stays: what a whole review came to, or, through
// bridges, the first reservation where there was none. In the middle of
// one a reservation may be missing that is being asked for anew, and a record that
// said so would stay.
func (r *relays) addresses() []ma.Multiaddr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.told
}

// open are those bridges at which we wait for who knows them: they are dialled by
// their names alone.
func (r *relays) open() (out []peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, h := range r.held {
		if h.door {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// tell takes what a review came to into our records.
func (r *relays) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var now []ma.Multiaddr
	for _, h := range r.held {
		if r.general(h) {
			now = append(now, transport.Circuit(h.info)...)
		}
	}
	slices.SortFunc(now, func(a, b ma.Multiaddr) int { return a.Compare(b) })
	if !slices.EqualFunc(now, r.told, ma.Multiaddr.Equal) {
		r.told = now
		poke(r.retold)
		r.n.beacon.renew()
	}
}

// count is how many relays everybody reaches us through.
func (r *relays) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.countLocked()
}

func (r *relays) countLocked() (n int) {
	for _, h := range r.held {
		if r.general(h) {
			n++
		}
	}
	return n
}

// state is how it stands, for status; alone says that nobody is connected to.
func (r *relays) state(alone bool) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.countLocked() > 0:
		return "ok"
	case r.spared:
		return "not needed: others can dial this machine"
	case len(r.held) > 0:
		return "for contacts who have a bridge of yours"
	case alone && r.n.cfg.Offline:
		return offByPreset
	case alone:
		return "not connected to any community node"
	}
	return "outgoing only: no community node relays for us yet"
}

// standing is how many relays everybody reaches us through, and whether we need none.
func (r *relays) standing() (held int, spared bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.countLocked(), r.spared
}

// skew is by how much the clocks of relays are before ours, of several by the one
// that is nearest to ours: one alone may be wrong, or lie. ok is false if there
// are none.
func (r *relays) skew() (least time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.held {
		if !ok || h.ahead.Abs() < least.Abs() {
			least, ok = h.ahead, true
		}
	}
	return least, ok
}

// run keeps the reservations until ctx ends.
func (r *relays) run(ctx context.Context) {
	gone := &network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if _, ok := r.held[c.RemotePeer()]; ok {
			poke(r.changed)
		}
	}}
	r.n.cfg.Host.Network().Notify(gone)
	defer r.n.cfg.Host.Network().StopNotify(gone)
	pause := relayRetryMin
	for first := true; ; first = false {
		lacking := r.review(ctx)
		if ctx.Err() != nil {
			return
		}
		r.tell()
		if first {
			close(r.settled)
		}
		wait := r.next()
		if lacking {
			wait = min(max(wait, relayRetryMin), pause/2+rand.N(pause))
			pause = min(2*pause, r.patience(relayRetryMax))
		} else {
			pause = relayRetryMin
		}
		timer := time.NewTimer(wait)
		select {
		case <-r.changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// patience is what a pause or a rest may be.
func (r *relays) patience(most time.Duration) time.Duration {
	if r.n.modes.censored() {
		return min(most, relayRestFew)
	}
	return most
}

// next is how long until something is to be renewed or asked.
func (r *relays) next() time.Duration {
	wait := renewMax
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.held {
		wait = min(wait, time.Until(h.renew))
	}
	return max(wait, 0)
}

// review drops what is lost, renews what is due, and asks for what is lacking.
func (r *relays) review(ctx context.Context) (lacking bool) {
	shy, err := r.shy(ctx)
	if err != nil {
		return true
	}
	if r.forgive.Swap(false) {
		clear(r.refused)
	}
	if r.anew.Swap(false) {
		r.probe = time.Time{}
		clear(r.refused)
	}
	if time.Now().After(r.probe) {
		if r.count() == 0 {
			r.acquire(ctx, 1) // somebody has to be asked
		}
		r.dialled = r.n.cfg.Host.Reachable(ctx)
		r.probe = time.Now().Add(r.n.leisurely(reachableMin + rand.N(reachableMax-reachableMin)))
	}
	want := relaysWanted
	if r.dialled && !shy {
		want = 0
	}
	doors, err := r.n.doors(ctx)
	if err != nil {
		return true
	}
	if r.n.metered() { // a connection to a bridge is never silent
		doors = nil
	}
	before := r.open()
	r.mu.Lock()
	r.spared = want == 0
	held := make([]reservation, 0, len(r.held))
	for _, h := range r.held {
		held = append(held, h)
	}
	r.mu.Unlock()
	for _, h := range held {
		h.door = slices.Contains(doors, h.info.ID)
		switch {
		case !h.door && (want == 0 || !r.general(h)):
			r.n.cfg.Host.Release(h.info.ID)
			r.forget(h.info.ID)
		case !r.n.cfg.Host.Direct(h.info.ID):
			if h.door && time.Since(h.since) < doorTime {
				r.refused[h.info.ID] = time.Now().Add(relayRest/2 + rand.N(relayRest))
			}
			r.forget(h.info.ID)
		case !time.Now().Before(h.renew) && !r.reserve(ctx, h.info, h.door):
			r.forget(h.info.ID)
		default:
			r.mark(h.info.ID, h.door)
		}
	}
	r.acquire(ctx, want-r.count())
	for _, id := range doors {
		if !r.mark(id, true) && !r.refused[id].After(time.Now()) {
			r.tell() // who needs no bridge does not wait until one answers
			r.reserve(ctx, r.n.modes.bridge(id), true)
		}
	}
	open := r.open()
	if !slices.Equal(open, before) {
		r.n.beacon.renew()
	}
	return r.count() < want || len(open) < len(doors)
}

// mark says of a reservation that we hold whether it is for those who know the
// bridge. ok is false if we hold none.
func (r *relays) mark(id peer.ID, door bool) (ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.held[id]
	if ok {
		h.door = door
		r.held[id] = h
	}
	return ok
}

// shy says whether somebody is told relays alone, although we could be dialled.
func (r *relays) shy(ctx context.Context) (shy bool, err error) {
	if r.n.cfg.HideAddress {
		return true, nil
	}
	err = r.n.view(ctx, func(tx *store.Tx) error {
		shy = false
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		for _, c := range contacts {
			shy = shy || c.Hidden || c.State == store.ContactPending // perhaps by a reusable invite
		}
		invites, err := tx.Invites()
		for _, i := range invites {
			shy = shy || i.Reusable && i.State == store.InviteOpen
		}
		return err
	})
	return shy, err
}

// doors are the bridges at which we wait for those to whom we name them: the first
// of those that invites name and the user added. Who names one in an invite may run
// it, and would learn our address from our coming, though we hide it from them, and
// that of whatever they name would be dialled for good (threats F11, E10). In a
// censored network we are reached through nothing else anyway, and there are none.
func (n *Node) doors(ctx context.Context) (ids []peer.ID, err error) {
	if n.modes.censored() {
		return nil, nil
	}
	err = n.view(ctx, func(tx *store.Tx) error {
		ids = nil
		rows, err := tx.Bridges()
		rows = slices.DeleteFunc(rows, func(b store.BridgeRow) bool { return b.Source != store.BridgeFromUser })
		ids = bridgeIDs(bridgeBytes(rows))
		return err
	})
	return ids[:min(len(ids), relaysWanted)], err
}

// acquire asks nodes for want reservations: first such that lie elsewhere than
// the ones we have.
func (r *relays) acquire(ctx context.Context, want int) {
	if want <= 0 {
		return
	}
	candidates := r.candidates(ctx)
	near := make(map[netip.Prefix]bool)
	asked := make(map[peer.ID]bool)
	r.mu.Lock()
	for id, h := range r.held {
		asked[id] = true
		near[neighbourhood(h.info)] = true
	}
	r.mu.Unlock()
	delete(near, netip.Prefix{})
	for _, spread := range []bool{true, false} {
		for _, info := range candidates {
			if want == 0 || ctx.Err() != nil {
				return
			}
			if asked[info.ID] || spread && near[neighbourhood(info)] {
				continue
			}
			asked[info.ID] = true
			if !r.reserve(ctx, info, false) {
				continue
			}
			if len(r.addresses()) == 0 && r.n.modes.censored() {
				r.tell() // there the second may take long
			}
			if p := neighbourhood(info); p.IsValid() {
				near[p] = true
			}
			want--
		}
	}
}

// candidates are the community nodes that may be asked, in random order.
func (r *relays) candidates(ctx context.Context) (out []peer.AddrInfo) {
	known, err := r.n.mail.ways(ctx)
	if err != nil {
		return nil
	}
	now := time.Now()
	for id, until := range r.refused {
		if now.After(until) {
			delete(r.refused, id)
		}
	}
	for _, info := range slices.Concat(r.n.cfg.Discovery.Nodes(), known) {
		if r.refused[info.ID].After(now) || len(info.Addrs) == 0 || info.ID == r.n.cfg.Host.ID() {
			continue
		}
		// Where others dial what they like, a relay that we reach through a bridge is
		// for nobody but those who know the bridge (doors).
		info.Addrs = slices.DeleteFunc(slices.Clone(info.Addrs), func(a ma.Multiaddr) bool {
			return !r.n.permits(a) || transport.IsVeil(a) && !r.n.modes.censored()
		})
		i := slices.IndexFunc(out, func(o peer.AddrInfo) bool { return o.ID == info.ID })
		switch {
		case len(info.Addrs) == 0:
		case i < 0:
			out = append(out, info)
		default:
			out[i].Addrs = append(out[i].Addrs, info.Addrs...)
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// reserve asks one node, or has it renew what it gave.
func (r *relays) reserve(ctx context.Context, info peer.AddrInfo, door bool) bool {
	host := r.n.cfg.Host
	if r.n.rush.wait(ctx) != nil {
		return false
	}
	lasts, err := host.Reserve(ctx, info)
	made := reservation{
		info: r.proven(info.ID), renew: time.Now().Add(renewMin + rand.N(renewMax-renewMin)), since: time.Now(), ahead: lasts - transport.ReservedTime, door: door,
	}
	if err != nil || !door && !r.general(made) {
		if ctx.Err() == nil {
			rest := r.patience(relayRest)
			r.refused[info.ID] = time.Now().Add(rest/2 + rand.N(rest))
			host.Release(info.ID)
		}
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[info.ID] = made
	return true
}

// proven is how others may dial a relay that we are connected to: at the address
// that we use ourselves, and the others that it has there.
func (r *relays) proven(id peer.ID) peer.AddrInfo {
	host := r.n.cfg.Host
	info := peer.AddrInfo{ID: id}
	published := host.Peerstore().Addrs(id)
	for _, c := range host.Network().ConnsToPeer(id) {
		if transport.IsRelayed(c) {
			continue
		}
		if transport.OverVeil(c) {
			continue // its name has to do, for those who know a way to it (docs/spec/roads.md, section 3)
		}
		used := c.RemoteMultiaddr()
		at := placeOf(used)
		info.Addrs = append(info.Addrs, used)
		for _, a := range published {
			if p := placeOf(a); p == at && p.IsValid() && !transport.HasPath(a) {
				info.Addrs = append(info.Addrs, a)
			}
		}
	}
	return info
}

// forget drops a reservation that is no more.
func (r *relays) forget(id peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.held, id)
}
