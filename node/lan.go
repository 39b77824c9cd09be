package node

// The local network (docs/spec/lan.md). While it is switched on, we say where we
// are to those who share a secret with us and are on the same network, and hear
// it of them. A device that was heard is called there before anywhere else; what
// its record would say, if it could be found, it hands over itself.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/discovery"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/lan"
	"github.com/kith-im/kith/protocol/rendezvous"
)

const (
	// lanFresh is how long somebody who was heard is taken to be there: three
	// packets may get lost.
	lanFresh = 2 * time.Minute

	// answerTime is how long one who was recognised is spoken to before others:
	// until an answer has left on each of our networks.
	answerTime = time.Second

	// handoutTime is how long a record that was handed out is handed out again,
	// so that asking for it costs next to nothing.
	handoutTime = 30 * time.Second

	// nodeRest is the least pause between two answers of a community node.
	nodeRest = time.Second

	// maxLANNodes bounds the community nodes that are taken from a local
	// network, where anybody can claim to be one.
	maxLANNodes = 8

	// recordTime bounds fetching a record from a device on the local network.
	recordTime = 5 * time.Second
)

// metaLAN keeps whether the local network is switched on.
const metaLAN = "lan"

// setting is how a switch is kept.
func setting(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

func lanSetting(tx *store.Tx) (on bool, err error) {
	v, err := tx.Meta(metaLAN)
	ok, err := found(err)
	return ok && len(v) == 1 && v[0] == 1, err
}

// locals is who is on the local networks.
type locals struct {
	n        *Node
	switched chan struct{} // on has changed

	mu      sync.Mutex
	on      bool
	radio   *discovery.LAN // nil while it is off
	changes uint64         // of whom we speak and listen to
	brought uint64         // up to which of them the keys are
	epoch   int64
	spoken  []lan.Key          // whom we speak to
	next    map[netip.Addr]int // of spoken, by the address we speak from
	answers []answer           // who is spoken to before others
	heard   []reader           // whom we listen to
	seen    map[identity.DeviceHash]sighting
	nodes   map[peer.ID]sighting
	records map[protocol.RendezvousSecret]handout

	answered time.Time // when a community node answered last
}

// answer is whom to speak to before others, for as long as answers are due.
type answer struct {
	key   lan.Key
	until time.Time
}

// handout is a record that was made for one who asked for it.
type handout struct {
	record []byte
	made   time.Time
}

// reader recognises a device, or a community node, under one secret.
type reader struct {
	device identity.DeviceHash // zero: a community node
	keys   [3]lan.Key          // of the epoch before ours, ours and the next
	answer lan.Key             // what we would speak to it with
	silent bool                // it is not to hear of us
}

// sighting is where somebody was heard, and when.
type sighting struct {
	info peer.AddrInfo
	from netip.Addr
	at   time.Time
}

func (s sighting) fresh(now time.Time) bool { return now.Sub(s.at) < lanFresh }

func newLocals(n *Node) *locals {
	return &locals{
		n: n, switched: make(chan struct{}, 1),
		next: make(map[netip.Addr]int), seen: make(map[identity.DeviceHash]sighting), nodes: make(map[peer.ID]sighting),
		records: make(map[protocol.RendezvousSecret]handout),
	}
}

// run speaks and listens whenever it is switched on, until ctx ends.
func (l *locals) run(ctx context.Context) {
	for {
		l.mu.Lock()
		on := l.on
		l.mu.Unlock()
		inner, cancel := context.WithCancel(ctx)
		var serving sync.WaitGroup
		if on {
			serving.Go(func() { l.serve(inner) })
		}
		select {
		case <-l.switched:
		case <-ctx.Done():
		}
		cancel()
		serving.Wait()
		if ctx.Err() != nil {
			return
		}
	}
}

// serve speaks and listens until ctx ends.
func (l *locals) serve(ctx context.Context) {
	radio := discovery.NewLAN(discovery.LANConfig{
		Open:   l.n.cfg.LANLink,
		Packet: func(source netip.Addr) []byte { return l.packet(ctx, source) },
		Heard: func(packet []byte, source lan.Source, from netip.Addr) bool {
			return l.hear(ctx, packet, source, from)
		},
		Moved: func(sources []netip.Addr) { l.n.cfg.Host.CloseNear(sources...) },
		Log:   l.n.log,
	})
	l.mu.Lock()
	l.radio = radio
	l.changes++
	l.mu.Unlock()
	_ = radio.Run(ctx) // it ends with ctx
	l.n.cfg.Host.CloseNear()
	l.mu.Lock()
	l.radio, l.spoken, l.answers, l.heard = nil, nil, nil, nil
	clear(l.seen)
	clear(l.nodes)
	clear(l.records)
	l.mu.Unlock()
}

// refresh has it looked up again whom we speak and listen to, and speaks up if
// that may be somebody new.
func (l *locals) refresh() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changes++
	if l.radio != nil {
		l.radio.Announce()
	}
}

// bring makes the keys of this epoch. It reports whether there are any.
func (l *locals) bring(ctx context.Context) bool {
	epoch := lan.Epoch(l.n.now())
	l.mu.Lock()
	changes := l.changes
	current := l.brought == changes && l.epoch == epoch
	l.mu.Unlock()
	if current {
		return true
	}
	spoken, heard, err := l.n.lanKeys(ctx, epoch)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		return false
	}
	if l.brought > changes {
		return true // another has read what is newer, and was quicker
	}
	mathrand.Shuffle(len(spoken), func(i, j int) { spoken[i], spoken[j] = spoken[j], spoken[i] })
	l.epoch, l.brought, l.spoken, l.heard, l.answers = epoch, changes, spoken, heard, nil
	clear(l.next)
	clear(l.records)
	return true
}

// lanKeys returns the keys of those we speak to in an epoch, and of those we
// listen to.
func (n *Node) lanKeys(ctx context.Context, epoch int64) (spoken []lan.Key, heard []reader, err error) {
	around := func(key func(epoch int64) lan.Key) (keys [3]lan.Key) {
		for i := range keys {
			keys[i] = key(epoch - 1 + int64(i))
		}
		return keys
	}
	heard = append(heard, reader{keys: around(lan.DeriveOpen)})
	if n.self == nil {
		return []lan.Key{lan.DeriveOpen(epoch)}, heard, nil
	}
	err = n.update(ctx, func(w *work) error {
		audiences, err := w.audiences()
		if err != nil {
			return err
		}
		spoken = nil
		told := make(map[protocol.RendezvousSecret]bool)
		for _, a := range audiences {
			if a.hidden {
				continue
			}
			told[a.secret] = true
			spoken = append(spoken, lan.Derive(a.secret, n.self.device.Hash(), epoch))
		}
		heard = heard[:1]
		contacts, err := w.tx.Contacts()
		if err != nil {
			return err
		}
		blocked := make(map[int64]bool)
		for _, c := range contacts {
			blocked[c.ID] = c.Blocked || n.hides(c)
		}
		devices, err := w.tx.Devices(0)
		if err != nil {
			return err
		}
		for _, d := range devices {
			if blocked[d.Contact] {
				continue
			}
			keys, err := sharedKeys(w.tx, d)
			if err != nil {
				return err
			}
			for _, k := range keys {
				device := identity.DeviceHash(d.Hash)
				heard = append(heard, reader{
					device: device,
					keys:   around(func(epoch int64) lan.Key { return lan.Derive(k.Rendezvous, device, epoch) }),
					answer: lan.Derive(k.Rendezvous, n.self.device.Hash(), epoch),
					silent: !told[k.Rendezvous],
				})
			}
		}
		return nil
	})
	return spoken, heard, err
}

// packet makes the next packet to be sent from one of our addresses: for those
// who wait for an answer, and for as many others, in turn, as there is room for.
func (l *locals) packet(ctx context.Context, source netip.Addr) []byte {
	if !l.bring(ctx) {
		return nil
	}
	if l.n.cfg.Host.Mode() == transport.Censored {
		if err := l.n.cfg.Host.ListenNear(source); err != nil {
			return nil
		}
	}
	source = source.WithZone("")
	here, ok := l.n.hereAt(source)
	if !ok {
		return nil
	}
	l.mu.Lock()
	now := time.Now()
	l.answers = slices.DeleteFunc(l.answers, func(a answer) bool { return now.After(a.until) })
	var keys []lan.Key
	for _, a := range l.answers {
		keys = append(keys, a.key)
	}
	for range min(lan.Slots-len(keys), len(l.spoken)) {
		keys = append(keys, l.spoken[l.next[source]%len(l.spoken)])
		l.next[source]++
	}
	l.mu.Unlock()
	packet, err := lan.Seal(l.random(), lan.Source(source.As16()), here, keys)
	if err != nil {
		return nil
	}
	return packet
}

func (l *locals) random() io.Reader {
	if l.n.self != nil {
		return l.n.self.rand
	}
	return rand.Reader
}

// hereAt is where we can be reached by those who see us at an address.
func (n *Node) hereAt(source netip.Addr) (here lan.Here, ok bool) {
	key, err := n.cfg.Host.ID().ExtractPublicKey()
	if err != nil {
		return here, false
	}
	raw, err := key.Raw()
	if err != nil {
		return here, false
	}
	copy(here.Peer[:], raw)
	for _, a := range n.cfg.Host.Network().ListenAddresses() {
		at, quic, ok := socketOf(a)
		if !ok || at.Addr().Is4() != source.Is4() || !at.Addr().IsUnspecified() && at.Addr().WithZone("") != source {
			continue
		}
		if quic {
			here.QUIC = at.Port()
		} else {
			here.TCP = at.Port()
		}
	}
	return here, here.TCP != 0 || here.QUIC != 0
}

// socketOf reads an address of plain TCP or QUIC.
func socketOf(a ma.Multiaddr) (at netip.AddrPort, quic, ok bool) {
	network, host, err := manet.DialArgs(a)
	if err != nil {
		return at, false, false
	}
	_, err = a.ValueForProtocol(ma.P_QUIC_V1)
	quic = err == nil
	if at, err = netip.ParseAddrPort(host); err != nil {
		return at, quic, false
	}
	switch network {
	case "tcp", "tcp4", "tcp6":
		return at, false, !quic
	case "udp", "udp4", "udp6":
		return at, true, quic
	}
	return at, quic, false
}

// hear looks in a packet for those we know, and says whether one of them is to
// have an answer soon.
func (l *locals) hear(ctx context.Context, packet []byte, source lan.Source, from netip.Addr) (soon bool) {
	from, ok := transport.NearAddr(from)
	if !ok || !l.bring(ctx) {
		return false
	}
	l.mu.Lock()
	readers, known := l.heard, false
	l.mu.Unlock()
	for i := range readers {
		r := &readers[i]
		for _, k := range r.keys {
			here, ok := k.Open(packet, source)
			if !ok {
				continue
			}
			info, err := infoOfHere(here, from)
			if err != nil || info.ID == l.n.cfg.Host.ID() {
				break
			}
			if r.device == (identity.DeviceHash{}) {
				known = true
				if l.n.self != nil {
					l.meet(info, from)
				}
			} else if l.sight(r.device, info, from) && !r.silent {
				l.mu.Lock()
				if len(l.answers) < lan.Slots {
					l.answers = append(l.answers, answer{r.answer, time.Now().Add(answerTime)})
				}
				l.mu.Unlock()
				soon = true
			}
			break
		}
	}
	if l.n.self == nil {
		// A community node answers everybody but its like: it knows none of them,
		// and whoever has just appeared may need it.
		return !known && l.rested()
	}
	return soon
}

// rested says whether a community node may answer again.
func (l *locals) rested() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.answered) < nodeRest {
		return false
	}
	l.answered = time.Now()
	return true
}

// infoOfHere is how to call somebody who was heard from an address: there, and
// nowhere else.
func infoOfHere(here lan.Here, from netip.Addr) (info peer.AddrInfo, err error) {
	key, err := crypto.UnmarshalEd25519PublicKey(here.Peer[:])
	if err != nil {
		return info, err
	}
	if info.ID, err = peer.IDFromPublicKey(key); err != nil {
		return info, err
	}
	ip, err := manet.FromIP(from.AsSlice())
	if err != nil {
		return info, err
	}
	for _, s := range []struct {
		port uint16
		way  string
	}{{here.QUIC, "/udp/%d/quic-v1"}, {here.TCP, "/tcp/%d"}} {
		if s.port == 0 {
			continue
		}
		way, err := ma.NewMultiaddr(fmt.Sprintf(s.way, s.port))
		if err != nil {
			return info, err
		}
		info.Addrs = append(info.Addrs, ip.Encapsulate(way))
	}
	return info, nil
}

// sight notes where a device is. It reports whether that is news, and if so has
// its courier call.
func (l *locals) sight(d identity.DeviceHash, info peer.AddrInfo, from netip.Addr) (news bool) {
	now := l.n.now()
	l.mu.Lock()
	old, ok := l.seen[d]
	news = !ok || !old.fresh(now) || old.info.ID != info.ID
	// Of several addresses the first is kept for as long as it is heard, so that
	// one who is on two networks does not seem to move all the time.
	if news || old.from == from {
		l.seen[d] = sighting{info: info, from: from, at: now}
	}
	l.mu.Unlock()
	if news {
		if c := l.n.outbox.courier(d); c != nil {
			poke(c.heard)
			c.hurry()
		} else {
			l.n.outbox.add(d)
		}
	}
	return news
}

// meet takes a community node of the local network into the table.
func (l *locals) meet(info peer.AddrInfo, from netip.Addr) {
	now := l.n.now()
	l.mu.Lock()
	for id, s := range l.nodes {
		if !s.fresh(now) {
			delete(l.nodes, id)
		}
	}
	_, known := l.nodes[info.ID]
	room := known || len(l.nodes) < maxLANNodes
	if room {
		l.nodes[info.ID] = sighting{info: info, from: from, at: now}
	}
	l.mu.Unlock()
	if room && !known {
		l.n.cfg.Discovery.AddWaysIn([]peer.AddrInfo{info})
		l.n.mail.wake()
		l.n.mail.hurry()
		l.n.outbox.hurry() // what waits may be left there
	}
}

// where returns where a device was heard lately.
func (l *locals) where(d identity.DeviceHash) (peer.AddrInfo, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.seen[d]
	return s.info, ok && s.fresh(l.n.now())
}

// community returns the community nodes that were heard lately.
func (l *locals) community() (out []peer.AddrInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.nodes {
		if s.fresh(l.n.now()) {
			out = append(out, s.info)
		}
	}
	return out
}

// Near says whether somebody we know was heard at an address of the local
// network lately. Only then may a host call private addresses that it otherwise
// would not.
func (n *Node) Near(a ma.Multiaddr) bool {
	ip, err := manet.ToIP(a)
	if err != nil {
		return false
	}
	at, ok := netip.AddrFromSlice(ip)
	if !ok {
		return false
	}
	at = at.Unmap()
	n.locals.mu.Lock()
	defer n.locals.mu.Unlock()
	now := n.now()
	for _, s := range n.locals.seen {
		if s.from == at && s.fresh(now) {
			return true
		}
	}
	for _, s := range n.locals.nodes {
		if s.from == at && s.fresh(now) {
			return true
		}
	}
	return false
}

// contain says whether an address is on one of the networks that are listened to.
func (l *locals) contain(a ma.Multiaddr) bool {
	l.mu.Lock()
	radio := l.radio
	l.mu.Unlock()
	if radio == nil {
		return false
	}
	netIP, err := manet.ToIP(a)
	if err != nil {
		return false
	}
	ip, ok := netip.AddrFromSlice(netIP)
	networks, _ := radio.Status()
	return ok && slices.ContainsFunc(networks, func(n discovery.LocalNetwork) bool { return n.Prefix.Contains(ip.Unmap()) })
}

// recordFor returns the record that the holder of an invite would find in the
// table.
func (l *locals) recordFor(ctx context.Context, secret protocol.RendezvousSecret) ([]byte, error) {
	l.mu.Lock()
	h, ok := l.records[secret]
	l.mu.Unlock()
	if ok && time.Since(h.made) < handoutTime {
		return h.record, nil
	}
	record, err := l.n.makeRecord(ctx, secret)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records[secret] = handout{record, time.Now()}
	return record, nil
}

func (n *Node) makeRecord(ctx context.Context, secret protocol.RendezvousSecret) ([]byte, error) {
	where, err := n.whereWeAre(ctx)
	if err != nil {
		return nil, err
	}
	var body rendezvous.Body
	day := rendezvous.Day(n.now())
	point := rendezvous.Derive(secret, n.self.device.Hash(), day)[0]
	var seq uint64
	if err := n.update(ctx, func(w *work) error {
		audiences, err := w.audiences()
		if err != nil {
			return err
		}
		known := false
		for _, a := range audiences {
			if a.secret.Equal(secret) {
				body, known = where.to(a), true
			}
		}
		if !known {
			return errNoRecord
		}
		key := point.Key()
		seq, err = w.tx.NextPointSeq(key[:], day)
		return err
	}); err != nil {
		return nil, err
	}
	return point.Seal(seq, n.now().Add(recordLife), body)
}

// handRecord answers a stream on which our record is asked for.
func (n *Node) handRecord(ctx context.Context, s network.Stream, secret protocol.RendezvousSecret) {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	record, err := n.locals.recordFor(ctx, secret)
	if err == nil {
		_ = s.SetWriteDeadline(time.Now().Add(recordTime))
		_, err = s.Write(record)
	}
	if err != nil {
		_ = s.Reset()
		return
	}
	_ = s.Close()
}

// fetch asks a device that was heard for its record, under each secret that we
// share with it.
func (c *courier) fetch(ctx context.Context, id peer.ID, keys []protocol.Shared) (discovery.Found, protocol.Shared, error) {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	today := rendezvous.Day(c.n.now())
	for _, k := range keys {
		record, err := c.askRecord(ctx, id, k, today)
		if err != nil {
			continue
		}
		for day := today - 1; day <= today+1; day++ {
			points := rendezvous.Derive(k.Rendezvous, c.device, day)
			if body, seq, err := points[0].Open(record, c.n.now()); err == nil {
				return discovery.Found{Body: body, Seq: seq}, k, nil
			}
		}
	}
	return discovery.Found{}, protocol.Shared{}, errNoRecord
}

func (c *courier) askRecord(ctx context.Context, id peer.ID, k protocol.Shared, today int64) ([]byte, error) {
	var names []libp2p.ID
	for _, day := range []int64{today, today - 1, today + 1} {
		names = append(names, libp2p.ID(lan.RecordName(k.Stream, day)))
	}
	s, err := c.n.cfg.Host.NewStream(network.WithNoDial(ctx, "it was heard"), id, names...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Reset() }() // nothing is to be said after the record
	if err := s.SetReadDeadline(time.Now().Add(recordTime)); err != nil {
		return nil, err
	}
	record := make([]byte, protocol.RecordSize)
	if _, err := io.ReadFull(s, record); err != nil {
		return nil, err
	}
	return record, nil
}

// visit connects to a device where it was heard, and learns from it what its
// record says.
func (c *courier) visit(ctx context.Context, d store.DeviceRow, keys []protocol.Shared, info peer.AddrInfo) outcome {
	m, err := c.meeting(ctx)
	switch {
	case err != nil:
		return outcome{err: err}
	case m.hidden:
		return outcome{err: errDial}
	case m.way == transport.Relayed: // a stranger, but here
		m.way = transport.Dialled
	}
	if err := c.connect(ctx, info, m.way); err != nil {
		return outcome{err: err}
	}
	if d.Public == nil || d.Link != nil {
		found, at, err := c.fetch(ctx, info.ID, keys)
		if err == nil {
			keys, err = c.digest(ctx, d, keys, found, at)
		}
		if err != nil && d.Public == nil {
			return outcome{err: err}
		}
	}
	return outcome{id: info.ID, keys: keys}
}

func (l *locals) isOn() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.on
}

// lanEvent says that the local network was switched on or off.
type lanEvent struct {
	On bool `json:"on"`
}

// SetLAN switches the local network on or off, from now on and after a restart.
func (n *Node) SetLAN(ctx context.Context, on bool) error {
	err := n.update(ctx, func(w *work) error {
		was, err := lanSetting(w.tx)
		if err != nil || was == on {
			return err
		}
		if err := w.tx.SetMeta(metaLAN, setting(on)); err != nil {
			return err
		}
		if n.self == nil {
			return nil // a community node keeps no events
		}
		return w.emit(eventLAN, 0, lanEvent{On: on})
	})
	if err != nil {
		return err
	}
	n.locals.turn(on)
	return nil
}

func (l *locals) turn(on bool) {
	l.mu.Lock()
	changed := l.on != on
	l.on = on
	l.mu.Unlock()
	if changed {
		poke(l.switched)
	}
}

// SetLan switches the local network, if the request says so, and returns how it
// stands.
func (n *Node) SetLan(ctx context.Context, req *apiv1.SetLanRequest) (*apiv1.SetLanResponse, error) {
	if err := n.SetLAN(ctx, req.On); err != nil {
		return nil, explain(err)
	}
	return &apiv1.SetLanResponse{Lan: n.locals.status()}, nil
}

// status says how the local network stands.
func (l *locals) status() *apiv1.Lan {
	l.mu.Lock()
	radio := l.radio
	out := &apiv1.Lan{On: l.on}
	if !l.on { // what was heard is forgotten in a moment
		l.mu.Unlock()
		return out
	}
	now := l.n.now()
	for _, s := range l.seen {
		if s.fresh(now) {
			out.Devices++
		}
	}
	for _, s := range l.nodes {
		if s.fresh(now) {
			out.Nodes++
		}
	}
	l.mu.Unlock()
	if radio == nil {
		return out
	}
	networks, err := radio.Status()
	out.Networks = int32(len(networks))
	switch {
	case err == nil:
	case errors.Is(err, discovery.ErrNoLocalNetwork):
		out.Problem = "this machine is on no local network"
	default:
		out.Problem = "the local network can not be listened to: another program may use its port"
	}
	return out
}

// lanRoad is the state of the road for status.
func lanRoad(l *apiv1.Lan) string {
	switch {
	case !l.On:
		return "off"
	case l.Problem != "":
		return l.Problem
	}
	return "ok"
}
