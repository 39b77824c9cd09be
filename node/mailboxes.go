package node

// Our own mailboxes. We choose a few community nodes, open a box at each under a
// key of its own, and tell our contacts, inside sessions and in the records that
// only they can read. A box that is given up is emptied for as long as somebody
// may still deposit there.

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/mailbox"
	"github.com/kith-im/kith/protocol/message"
	"github.com/kith-im/kith/protocol/rendezvous"
)

// MailboxMode says whether mailboxes are used.
type MailboxMode int

// The modes. MailboxNone is for those who want to exchange messages directly
// or not at all.
const (
	MailboxAuto MailboxMode = iota
	MailboxNone
)

const (
	// boxesWanted is how many boxes we open by ourselves: two may fail.
	boxesWanted = 3

	// The set is reviewed every reviewEvery; while boxes are lacking, after
	// reviewMin, doubling to reviewEvery, or where bytes cost money, eight times
	// later each time, to reviewMetered.
	reviewMin     = 5 * time.Second
	reviewEvery   = 10 * time.Minute
	reviewMetered = 4 * time.Hour

	// maxSetBytes bounds what of our set goes into a record, beside a bundle.
	maxSetBytes = 300
)

// metaMailSet keeps the set that contacts were told last.
const metaMailSet = "mailbox set"

// Mailboxes are our boxes, and the order in which deposits reach the nodes of
// our contacts.
type Mailboxes struct {
	n       *Node
	changed chan struct{}
	anew    atomic.Bool // the network has changed, and those who said no may say yes

	mu         sync.Mutex
	lanes      map[peer.ID]*lane
	collectors map[peer.ID]*collector
	warned     bool // that too few boxes are healthy
}

func newMailboxes(n *Node) *Mailboxes {
	return &Mailboxes{
		n: n, changed: make(chan struct{}, 1),
		lanes: make(map[peer.ID]*lane), collectors: make(map[peer.ID]*collector),
	}
}

// lane lets deposits to one node pass one after another, and those for
// different contacts with a pause between.
type lane struct {
	users int           // guarded by Mailboxes.mu
	free  chan struct{} // holds a token: whoever takes it deposits
	last  identity.DeviceHash
	next  time.Time // for others than last
}

// enter waits for a node's lane. leave gives it back.
func (m *Mailboxes) enter(ctx context.Context, node peer.ID, device identity.DeviceHash) (leave func(), err error) {
	m.mu.Lock()
	for id, l := range m.lanes {
		if l.users == 0 && !time.Now().Before(l.next) {
			delete(m.lanes, id) // as good as none
		}
	}
	l := m.lanes[node]
	if l == nil {
		l = &lane{free: make(chan struct{}, 1)}
		l.free <- struct{}{}
		m.lanes[node] = l
	}
	l.users++
	m.mu.Unlock()
	left := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		l.users--
	}
	select {
	case <-l.free:
	case <-ctx.Done():
		left()
		return nil, ctx.Err()
	}
	if wait := time.Until(l.next); l.last != device && wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			l.free <- struct{}{}
			left()
			return nil, ctx.Err()
		}
	}
	return func() {
		l.last, l.next = device, time.Now().Add(laneMin+rand.N(laneMax-laneMin))
		l.free <- struct{}{}
		left()
	}, nil
}

// wake has the boxes looked at: one of them, or what is known of its node, has
// changed.
func (m *Mailboxes) wake() { poke(m.changed) }

// restart has every box visited anew: what may be dialled has changed.
func (m *Mailboxes) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.collectors {
		c.stop() // another takes over at the review that its end brings about
	}
	m.wake()
}

// retag has every box brought up to date with the tags we accept.
func (m *Mailboxes) retag() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.collectors {
		poke(c.news)
	}
}

// hurry has every box that could not be reached tried again at once: the
// network has changed.
func (m *Mailboxes) hurry() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.collectors {
		poke(c.again)
	}
	m.anew.Store(true)
	m.wake()
}

// run keeps the boxes until ctx ends.
func (m *Mailboxes) run(ctx context.Context) {
	var collecting sync.WaitGroup
	defer collecting.Wait()
	pause := reviewMin
	for {
		if m.anew.Swap(false) {
			pause = reviewMin
		}
		lacking, err := m.review(ctx, &collecting)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			m.n.log.Warn("the mailboxes could not be looked after; it is tried again", "cause", err)
		}
		wait := reviewEvery
		if lacking || err != nil {
			grows, most := time.Duration(2), reviewEvery
			if m.n.metered() { // asking those who keep no mail costs as much as asking others
				grows, most = 8, reviewMetered
			}
			wait = pause/2 + rand.N(pause)
			pause = min(grows*pause, most)
		} else {
			pause = reviewMin
		}
		timer := time.NewTimer(wait)
		select {
		case <-m.changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// review replaces what has to be replaced, collects from every box, and tells
// contacts when the set has changed. lacking says that there are too few.
func (m *Mailboxes) review(ctx context.Context, collecting *sync.WaitGroup) (lacking bool, err error) {
	boxes, err := m.retire(ctx)
	if err != nil {
		return true, err
	}
	if err := m.follow(ctx, boxes); err != nil {
		return true, err
	}
	fit := 0
	for _, b := range boxes {
		if !b.State.Leaving() && !b.unfit {
			fit++
		}
	}
	if lacking = m.n.cfg.MailboxMode == MailboxAuto && fit < boxesWanted; lacking {
		added, err := m.choose(ctx, boxes, boxesWanted-fit, func(now []box) { m.sync(ctx, now, collecting) })
		if err != nil {
			return true, err
		}
		lacking = fit+added < boxesWanted
	}
	if boxes, err = m.retire(ctx); err != nil {
		return true, err
	}
	m.sync(ctx, boxes, collecting)
	return lacking, m.n.update(ctx, func(w *work) error {
		if err := w.publishBoxes(); err != nil {
			return err
		}
		return m.warn(w)
	})
}

// warn says when fewer boxes are healthy than a message is left at, and when
// there are enough again. Nothing is said of single boxes: kith mailbox list
// does.
func (m *Mailboxes) warn(w *work) error {
	told, err := mailSet(w.tx)
	if err != nil || told == nil || m.n.cfg.MailboxMode == MailboxNone {
		return err
	}
	healthy, _, err := healthyBoxes(w.tx, w.age, standingOf)
	few := healthy < holdersWanted
	m.mu.Lock()
	was := m.warned
	m.warned = few
	m.mu.Unlock()
	switch {
	case err != nil || few == was:
		return err
	case few:
		return w.emit(eventHealth, 0, healthEvent{
			Text: "too few of your mailboxes work, so messages may not reach you while you are away: kith mailbox list shows why, kith mailbox add ADDRESS adds one",
		})
	}
	return w.emit(eventHealth, 0, healthEvent{OK: true, Text: "enough of your mailboxes work again"})
}

// healthyBoxes counts the boxes that contacts are told of, and of those the
// ones that answer and keep their word, as called says.
func healthyBoxes(tx *store.Tx, age int64, called func(store.KeeperRow, int64) standing) (healthy, all int, err error) {
	set, err := toldBoxes(tx)
	if err != nil {
		return 0, 0, err
	}
	boxes, err := tx.Boxes()
	if err != nil {
		return 0, 0, err
	}
	for _, b := range boxes {
		a, err := ma.NewMultiaddr(b.Address)
		if err != nil {
			return 0, 0, errors.Join(store.ErrDamaged, err)
		}
		told := slices.ContainsFunc(set.Nodes, func(n []byte) bool { return bytes.Equal(n, publicForm(a).Bytes()) })
		if b.State != store.BoxActive || !told {
			continue
		}
		k, err := tx.Keeper(b.Node)
		if err != nil {
			return 0, 0, err
		}
		all++
		if s := called(k, age); s == standingGood || s == standingDegraded {
			healthy++
		}
	}
	return healthy, all, nil
}

// box is a box with what is known of its node.
type box struct {
	store.BoxRow

	node  peer.ID
	kept  store.KeeperRow
	unfit bool // should be replaced
	away  bool // because it has not answered for long
}

// waits says whether a box that should be replaced is kept until it has been: one
// that contacts know and that was only away may come back.
func (b *box) waits() bool {
	return b.away && b.State == store.BoxActive
}

// retire gives up boxes that are not wanted: all, if mailboxes are switched off;
// one whose node retires, and, unless the user has chosen it, one whose node
// lies, if others are left, or was away for long, if others have taken its place. What the user has chosen is
// taken again as soon as its node takes mail again.
func (m *Mailboxes) retire(ctx context.Context) (boxes []box, err error) {
	off := m.n.cfg.MailboxMode == MailboxNone
	err = m.n.update(ctx, func(w *work) error {
		boxes = nil
		rows, err := w.tx.Boxes()
		if err != nil {
			return err
		}
		for _, row := range rows {
			b := box{BoxRow: row, node: peer.ID(row.Node)}
			if b.kept, err = w.tx.Keeper(row.Node); err != nil {
				return err
			}
			patience := replaceAfter
			if b.State == store.BoxNew { // nobody was told of it
				patience = unreachableAfter
			}
			lies := standingOf(b.kept, w.age) == standingLying
			b.away = !lies && b.kept.Failing != 0 && w.age-b.kept.Failing >= patience.Milliseconds()
			info, err := infoOf(row.Address)
			if err != nil {
				return errors.Join(store.ErrDamaged, err)
			}
			b.unfit = lies || b.away || !m.n.permits(info.Addrs[0]) || m.draining(b.node)
			boxes = append(boxes, b)
		}
		healthy := 0
		for _, b := range boxes {
			if b.State == store.BoxActive && !b.unfit {
				healthy++
			}
		}
		replaced := healthy >= boxesWanted
		for i := range boxes {
			b := &boxes[i]
			retires := m.draining(b.node)
			switch {
			case b.State == store.BoxLeaving && b.Chosen && !off && m.takes(b.node):
				b.State, b.Left = store.BoxNew, 0
			case b.State.Leaving():
				continue
			case off, b.unfit && healthy > 0 && (retires || !b.Chosen && (replaced || !b.waits())):
				b.State, b.Left = store.BoxLeaving, w.age
			default:
				continue
			}
			if err := w.tx.SaveBox(b.BoxRow); err != nil {
				return err
			}
		}
		return nil
	})
	return boxes, err
}

// draining says whether a node has told us that it retires.
func (m *Mailboxes) draining(node peer.ID) bool {
	v, ok := m.look(node)
	return ok && v.draining
}

// takes says whether a node that we are connected to takes mail.
func (m *Mailboxes) takes(node peer.ID) bool {
	v, ok := m.look(node)
	return ok && v.connected && !v.draining
}

// look is what is known of a box from this run.
func (m *Mailboxes) look(node peer.ID) (v boxView, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.collectors[node]
	if c == nil {
		return v, false
	}
	return c.look(), true
}

// follow gives boxes whose node does not answer an address that the node is known
// under now and answers at, if it is another. A bridge may have several paths, of which
// one was revoked.
func (m *Mailboxes) follow(ctx context.Context, boxes []box) error {
	var ways []peer.AddrInfo
	for _, b := range boxes {
		if b.kept.Failing == 0 {
			continue
		}
		if ways == nil {
			var err error
			if ways, err = m.ways(ctx); err != nil {
				return err
			}
			if !m.n.modes.censored() { // else they are among them
				ways = append(ways, m.n.modes.known()...)
			}
		}
		address, ok := m.answering(ctx, b, ways)
		if !ok {
			continue
		}
		if _, err := m.change(ctx, b.node, func(row *store.BoxRow) { row.Address = address }); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// answering is another of the ways that lead to a box's node, at which it answers.
func (m *Mailboxes) answering(ctx context.Context, b box, ways []peer.AddrInfo) (address string, ok bool) {
	for _, info := range ways {
		if info.ID != b.node {
			continue
		}
		for _, a := range info.Addrs {
			one := peer.AddrInfo{ID: info.ID, Addrs: []ma.Multiaddr{a}}
			if address, err := addressOf(one); err == nil && address != b.Address && m.serves(ctx, one) == nil {
				return address, true
			}
		}
	}
	return "", false
}

// ways are the community nodes that invites and the user have named.
func (m *Mailboxes) ways(ctx context.Context) (out []peer.AddrInfo, err error) {
	var words []string
	for _, h := range m.n.cfg.Hints {
		words = append(words, h.String())
	}
	near := m.n.locals.community()
	err = m.n.view(ctx, func(tx *store.Tx) error {
		known, err := tx.Ways(keepWays)
		if err != nil {
			return err
		}
		out = slices.Clone(near)
		for _, way := range append(slices.Clone(words), known...) {
			info, err := infoOf(way)
			if err == nil && m.n.permits(info.Addrs[0]) {
				out = append(out, info)
			}
		}
		if m.n.modes.censored() {
			out = append(out, m.n.modes.known()...)
		}
		return nil
	})
	return out, err
}

// addressOf is a node's address as one text.
func addressOf(info peer.AddrInfo) (string, error) {
	full, err := peer.AddrInfoToP2pAddrs(&info)
	if err != nil {
		return "", err
	}
	return full[0].String(), nil
}

// choose opens boxes at up to want further nodes: those that invites and the
// user have named, in random order, but first such that lie elsewhere than the
// ones we have. As many are asked at one time as are wanted, and every box is
// handed to opened, with those we have, as soon as there is one. A box that we
// gave up there is taken again.
func (m *Mailboxes) choose(ctx context.Context, have []box, want int, opened func([]box)) (added int, err error) {
	candidates, err := m.candidates(ctx)
	if err != nil {
		return 0, err
	}
	left := make(map[peer.ID]bool)
	near := make(map[netip.Prefix]bool)
	taken := make(map[peer.ID]bool)
	for _, b := range have {
		if b.State == store.BoxLeaving {
			left[b.node] = true
			continue
		}
		taken[b.node] = true
		if info, err := infoOf(b.Address); err == nil && !b.State.Leaving() {
			near[neighbourhood(info)] = true
		}
	}
	delete(near, netip.Prefix{})
	for _, spread := range []bool{true, false} {
		for added < want && ctx.Err() == nil {
			var asked []peer.AddrInfo
			beside := maps.Clone(near)
			for _, info := range candidates {
				p := neighbourhood(info)
				if len(asked) == want-added || taken[info.ID] || spread && beside[p] {
					continue
				}
				taken[info.ID], beside[p] = true, p.IsValid()
				asked = append(asked, info)
			}
			if len(asked) == 0 {
				break
			}
			serve := make(chan peer.AddrInfo, len(asked))
			var asking sync.WaitGroup
			for _, info := range asked {
				asking.Go(func() {
					if m.serves(ctx, info) == nil {
						serve <- info
					}
				})
			}
			go func() {
				asking.Wait()
				close(serve)
			}()
			for info := range serve {
				b, err := m.settle(ctx, info, left[info.ID])
				if err != nil {
					return added, err
				}
				have = append(slices.DeleteFunc(have, func(o box) bool { return o.node == b.node }), b)
				if p := neighbourhood(info); p.IsValid() {
					near[p] = true
				}
				added++
				opened(have)
			}
		}
	}
	return added, ctx.Err()
}

// settle makes a box at a node, or takes one again that was given up.
func (m *Mailboxes) settle(ctx context.Context, info peer.AddrInfo, again bool) (box, error) {
	if !again {
		return m.add(ctx, info, false)
	}
	row, err := m.change(ctx, info.ID, func(row *store.BoxRow) {
		if row.State == store.BoxLeaving {
			row.State, row.Left = store.BoxNew, 0
		}
	})
	return box{BoxRow: row, node: info.ID}, err
}

// candidates are the nodes that may get a box.
func (m *Mailboxes) candidates(ctx context.Context) (out []peer.AddrInfo, err error) {
	ways, err := m.ways(ctx)
	if err != nil {
		return nil, err
	}
	err = m.n.view(ctx, func(tx *store.Tx) error {
		out = nil
		for _, info := range ways {
			if slices.ContainsFunc(out, func(o peer.AddrInfo) bool { return o.ID == info.ID }) {
				continue
			}
			k, err := tx.Keeper([]byte(info.ID))
			if err != nil {
				return err
			}
			if standingOf(k, m.n.age.now()) == standingGood {
				out = append(out, info)
			}
		}
		return nil
	})
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out, err
}

// serves asks a node whether it takes boxes.
func (m *Mailboxes) serves(ctx context.Context, info peer.AddrInfo) error {
	if err := m.n.rush.wait(ctx); err != nil {
		return err
	}
	host, done, err := m.n.modes.errand()
	if err != nil {
		return err
	}
	defer done()
	s, err := dialMail(ctx, host, info)
	if err != nil {
		return err
	}
	defer s.close()
	if s.hello.Draining {
		return &refusal{mailbox.Refused{Why: mailbox.RefusedDraining}}
	}
	return nil
}

// add makes a box at a node. It is opened by its collector.
func (m *Mailboxes) add(ctx context.Context, info peer.AddrInfo, chosen bool) (box, error) {
	address, err := addressOf(info)
	if err != nil {
		return box{}, err
	}
	key := make([]byte, len(mailbox.BoxKey{}))
	if _, err := io.ReadFull(m.n.self.rand, key); err != nil {
		return box{}, err
	}
	b := box{node: info.ID, BoxRow: store.BoxRow{
		Node: []byte(info.ID), Address: address, Key: key, State: store.BoxNew, Chosen: chosen,
	}}
	return b, m.n.update(ctx, func(w *work) error {
		rows, err := w.tx.Boxes()
		if err != nil {
			return err
		}
		for _, row := range rows { // the user and review may have had the same idea
			if peer.ID(row.Node) == info.ID {
				row.Chosen = row.Chosen || chosen
				b.BoxRow = row
			}
		}
		return w.tx.SaveBox(b.BoxRow)
	})
}

// sync has one collector for every box, and no other.
func (m *Mailboxes) sync(ctx context.Context, boxes []box, collecting *sync.WaitGroup) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted := make(map[peer.ID]bool)
	for _, b := range boxes {
		wanted[b.node] = true
		if c := m.collectors[b.node]; c != nil {
			if c.leaving != b.State.Leaving() || c.removed != (b.State == store.BoxRemoved) || c.address != b.Address {
				c.stop() // another takes over at the next review, which its end brings about
			}
			continue
		}
		c, err := newCollector(m.n, b.BoxRow)
		if err != nil {
			m.n.log.Warn("a mailbox's address cannot be read")
			continue
		}
		own, stop := context.WithCancel(ctx)
		c.stop = stop
		m.collectors[b.node] = c
		collecting.Go(func() {
			c.run(own)
			stop()
			m.mu.Lock()
			delete(m.collectors, c.info.ID)
			m.mu.Unlock()
			m.wake()
		})
	}
	for id, c := range m.collectors {
		if !wanted[id] {
			c.stop()
		}
	}
}

// mailSet is the set that contacts were told last, as they were told it; nil
// before the first.
func mailSet(tx *store.Tx) ([]byte, error) {
	b, err := tx.Meta(metaMailSet)
	_, err = found(err)
	return b, err
}

// toldBoxes is mailSet read; empty before contacts are told of any.
func toldBoxes(tx *store.Tx) (*mailbox.Set, error) {
	told, err := mailSet(tx)
	if err != nil || told == nil {
		return &mailbox.Set{}, err
	}
	set, err := mailbox.ParseSet(told)
	if err != nil {
		return nil, errors.Join(store.ErrDamaged, err)
	}
	return set, nil
}

// publishBoxes tells contacts where our boxes are, if that has changed.
func (w *work) publishBoxes() error {
	boxes, err := w.tx.Boxes()
	if err != nil {
		return err
	}
	// Contacts use the first: those that the user has chosen.
	slices.SortStableFunc(boxes, func(a, b store.BoxRow) int {
		switch {
		case a.Chosen == b.Chosen:
			return 0
		case a.Chosen:
			return -1
		}
		return 1
	})
	var nodes [][]byte
	size := 0
	for _, b := range boxes {
		a, err := ma.NewMultiaddr(b.Address)
		if err != nil {
			return errors.Join(store.ErrDamaged, err)
		}
		told := publicForm(a).Bytes()
		n := len(told) + 1
		if b.State == store.BoxActive && len(nodes) < mailbox.MaxSet && size+n <= maxSetBytes {
			nodes, size = append(nodes, told), size+n
		}
	}
	set, err := toldBoxes(w.tx)
	if err != nil {
		return err
	}
	if slices.EqualFunc(set.Nodes, nodes, bytes.Equal) {
		return nil
	}
	value, err := (&mailbox.Set{Version: set.Version + 1, Nodes: nodes}).Marshal()
	if err != nil {
		return err
	}
	if err := w.tx.SetMeta(metaMailSet, value); err != nil {
		return err
	}
	w.moved = true
	contacts, err := w.tx.Contacts()
	if err != nil {
		return err
	}
	for _, c := range contacts {
		tell := c.State == store.ContactEstablished
		// Who answered an invite before there were enough of them may be gone before
		// an answer, or a record, is there. Each word is a stranger's to the nodes
		// until then, and takes of what room these have for such: so few.
		if c.State == store.ContactPending && len(set.Nodes) < maxHolders {
			if tell, err = w.met(c); err != nil {
				return err
			}
		}
		if !tell || c.Blocked {
			continue
		}
		if err := w.tellBoxes(c); err != nil {
			return err
		}
	}
	return nil
}

// met says whether the keys of a contact's devices are known, and with them what to
// seal for it.
func (w *work) met(c store.ContactRow) (bool, error) {
	devices, err := w.tx.Devices(c.ID)
	return !slices.ContainsFunc(devices, func(d store.DeviceRow) bool { return d.Public == nil }), err
}

// publicForm is what others are told of a node's address. A bridge's is ours: of
// it they learn the node's name, under which they may know a way of their own.
func publicForm(a ma.Multiaddr) ma.Multiaddr {
	if !transport.HasPath(a) {
		return a
	}
	return a[len(a)-1:]
}

// tellBoxes tells a contact where our boxes are.
func (w *work) tellBoxes(c store.ContactRow) error {
	set, err := mailSet(w.tx)
	if err != nil || set == nil {
		return err
	}
	record, err := rendezvous.MarshalFields([]rendezvous.Field{{Type: rendezvous.FieldMailboxes, Value: set}})
	if err != nil {
		return err
	}
	return w.say(c, &message.Rendezvous{Record: record})
}

// neighbourhood is the part of the network that a node lies in: whoever runs or
// blocks one address there can do so with the others.
func neighbourhood(info peer.AddrInfo) netip.Prefix {
	if len(info.Addrs) == 0 {
		return netip.Prefix{} // known by its id alone, behind a bridge
	}
	a := placeOf(info.Addrs[0])
	if !a.IsValid() {
		return netip.Prefix{} // a name: its own place
	}
	bits := 16
	if a.Is6() {
		bits = 32
	}
	p, _ := a.Prefix(bits)
	return p
}

// placeOf is the IP address in an address, or none.
func placeOf(a ma.Multiaddr) netip.Addr {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}
	}
	out, _ := netip.AddrFromSlice(ip)
	return out.Unmap()
}

// infoOf reads a node's address.
func infoOf(address string) (peer.AddrInfo, error) {
	a, err := ma.NewMultiaddr(address)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	return mailInfo(a.Bytes())
}
