package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/protocol/rendezvous"
)

const (
	// protocolPrefix comes before kad-dht's own "/kad/1.0.0" (docs/spec/discovery.md,
	// section 1). It says what everybody sees anyway, a small table, and nothing else.
	protocolPrefix protocol.ID = "/lan"

	// keyPrefix comes before a point's 32 bytes in the table's keys.
	keyPrefix = "/r/"

	// maxPerTable and maxPerBucket bound the nodes of one network in the routing
	// table of a public node, and maxPerAnswer in one answer.
	maxPerTable  = 3
	maxPerBucket = 2
	maxPerAnswer = 3

	// copies is how many nodes a record is left with.
	copies = 10
	// maxRepairs bounds the nodes that a reader gives a record back to.
	maxRepairs = 3

	// joinWidth bounds the ways in that are dialled at once, from each source.
	joinWidth = 8
	// refreshTime bounds one refresh of the routing table.
	refreshTime = time.Minute
)

// table is the distributed hash table as we use it: kad-dht's routing table,
// messages and server, with our own walks, puts and gets. kad-dht's PutValue
// returns nil when every node refused, its GetValue waits for the dead, and its
// messenger's PutValue panics at an answer without a record.
type table struct {
	cfg     Config
	host    host.Host
	guarded *guardHost
	dht     *dht.IpfsDHT
	pm      *pb.ProtocolMessenger
	records *valueStore
	keep    func([]ma.Multiaddr) []ma.Multiaddr
	log     *slog.Logger

	mu        sync.Mutex
	refreshed time.Time // when the table was last refreshed
}

func newTable(cfg Config) (*table, error) {
	t := &table{cfg: cfg, host: cfg.Host, log: cfg.Log, keep: tableAddrs}
	if cfg.Public {
		t.keep = keepPublicAddrs
	}
	t.guarded = newGuardHost(cfg.Host, t.keep)
	t.records = newValueStore(hashOf(cfg.Host.ID()), cfg.RecordMemory, cfg.Now)
	mode := dht.ModeClient
	if cfg.Server {
		mode = dht.ModeServer
	}
	options := []dht.Option{
		dht.ProtocolPrefix(protocolPrefix),
		dht.Mode(mode),
		dht.BucketSize(closest),
		dht.DisableProviders(),
		dht.DisableAutoRefresh(),
		dht.RoutingTableRefreshPeriod(cfg.Refresh),
		dht.Validator(t.records.validator()),
		dht.ValueDatastore(t.records),
		dht.MaxRecordAge(0), // the store knows the age, by a clock that can't jump
		dht.OnRequestHook(t.records.admitRequest),
		dht.AddressFilter(t.keep),
		dht.QueryFilter(func(_ any, info peer.AddrInfo) bool { return isEd25519(info.ID) }),
		dht.RoutingTableFilter(func(_ any, p peer.ID) bool { return isEd25519(p) }),
	}
	if cfg.Public {
		options = append(options, dht.RoutingTablePeerDiversityFilter(
			dht.NewRTPeerDiversityFilter(t.guarded, maxPerBucket, maxPerTable)))
	}
	var err error
	if t.dht, err = dht.New(t.guarded, options...); err != nil {
		return nil, fmt.Errorf("start the hash table: %w", err)
	}
	if t.pm, err = pb.NewProtocolMessenger(t.dht.MessageSender()); err != nil {
		return nil, errors.Join(fmt.Errorf("start the hash table: %w", err), t.dht.Close())
	}
	return t, nil
}

func (t *table) close() error {
	if t.cfg.Server {
		t.host.RemoveStreamHandler(protocolPrefix + "/kad/1.0.0")
	}
	return t.dht.Close()
}

func (t *table) size() int { return t.dht.RoutingTable().Size() }

func (t *table) status() Status {
	s := Status{Table: t.size(), Records: t.records.count()}
	if t.cfg.Server {
		s.Mode = Server
	}
	for _, p := range t.dht.RoutingTable().ListPeers() {
		if t.host.Network().Connectedness(p) == network.Connected {
			s.Peers++
		}
	}
	return s
}

// refresh fills the routing table: a search for ourselves and one in each part
// of the key space that was not searched for as long as the table may age.
func (t *table) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, refreshTime)
	defer cancel()
	t.mu.Lock()
	t.refreshed = time.Now()
	t.mu.Unlock()
	select {
	case <-t.dht.RefreshRoutingTable():
	case <-ctx.Done():
	}
}

// freshen starts a refresh if the last one is too old.
func (t *table) freshen() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.refreshed) >= t.cfg.Refresh {
		t.refreshed = time.Now()
		t.dht.RefreshRoutingTable()
	}
}

// alive returns the community nodes of the routing table, longest known first.
func (t *table) alive() []peer.AddrInfo {
	infos := t.dht.RoutingTable().GetPeerInfos()
	slices.SortFunc(infos, func(a, b kbucket.PeerInfo) int { return a.AddedAt.Compare(b.AddedAt) })
	alive := make([]peer.AddrInfo, 0, len(infos))
	for _, info := range infos {
		alive = append(alive, t.guarded.Peerstore().PeerInfo(info.Id))
	}
	return alive
}

// ready waits for a first node in the routing table, connecting to ways in if
// nobody else does, and reports whether there is one.
func (d *Discovery) ready(ctx context.Context) bool {
	if d.table.size() > 0 {
		d.table.freshen()
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	return d.join(ctx)
}

// join connects to ways in until the routing table has an entry, or every way
// was tried, or ctx ends. It reports whether there is an entry.
func (d *Discovery) join(ctx context.Context) bool {
	select {
	case <-d.joining:
		defer func() { d.joining <- struct{}{} }()
	case <-ctx.Done():
		return d.table.size() > 0
	}
	if d.table.size() > 0 {
		return true
	}
	d.tried.Clear()
	ctx, cancel := context.WithCancel(ctx)
	dialling := d.dial(ctx, d.remembered, d.invited)
	defer dialling.Wait()
	defer cancel()
	tried := make(chan struct{})
	go func() {
		dialling.Wait()
		close(tried)
	}()
	// kad-dht adds a node after asking it a question and tells nobody when.
	poll := time.NewTicker(joinPoll)
	defer poll.Stop()
	var last <-chan time.Time
	for {
		select {
		case <-poll.C:
			if d.table.size() > 0 {
				return true
			}
		case <-tried:
			tried, last = nil, time.After(joinSettle)
		case <-last:
			return d.table.size() > 0
		case <-ctx.Done():
			return d.table.size() > 0
		}
	}
}

// dial begins to connect to some ways in of each source.
func (d *Discovery) dial(ctx context.Context, sources ...source) *sync.WaitGroup {
	ways := make(map[peer.ID]peer.AddrInfo)
	for _, s := range sources {
		infos := s.ways()
		rand.Shuffle(len(infos), func(i, j int) { infos[i], infos[j] = infos[j], infos[i] })
		for _, info := range infos[:min(len(infos), joinWidth)] {
			info.Addrs = slices.Concat(ways[info.ID].Addrs, info.Addrs)
			ways[info.ID] = info
		}
	}
	dialling := new(sync.WaitGroup)
	for _, info := range ways {
		dialling.Go(func() {
			if err := d.cfg.Host.Connect(ctx, info); err == nil || ctx.Err() == nil {
				d.tried.Store(info.ID, true)
			}
		})
	}
	return dialling
}

// widen connects to ways in that joining did not try: the first to answer may be
// liars, who name one another and nobody else (threats E03).
func (d *Discovery) widen(ctx context.Context) {
	if d.table.size() == 0 || d.byErrand() {
		return
	}
	given, kept := untried{d, d.invited}, untried{d, d.remembered}
	if len(given.ways())+len(kept.ways()) > 0 {
		d.dial(ctx, given, kept).Wait()
		d.table.refresh(ctx)
	}
}

// untried is what of a source is neither in the table nor was dialled yet.
type untried struct {
	d *Discovery
	source
}

func (u untried) ways() []peer.AddrInfo {
	return slices.DeleteFunc(u.source.ways(), func(info peer.AddrInfo) bool {
		_, tried := u.d.tried.Load(info.ID)
		return tried || u.d.table.dht.RoutingTable().Find(info.ID) != ""
	})
}

const (
	joinPoll = 10 * time.Millisecond
	// joinSettle is how long a connected node may take to enter the table.
	joinSettle = 2 * time.Second
)

func (d *Discovery) remember() { d.remembered.update(d.table.alive(), d.cfg.Public) }

func tableKey(key [32]byte) string { return keyPrefix + string(key[:]) }

func (t *table) validate(key [32]byte, record []byte) error {
	return rendezvous.Validate(key[:], record, t.cfg.Now())
}

// find walks to the nodes nearest to a key: first masked, then by asking with
// the key, for as long as limit. ask is called for every node that is shown the key.
func (t *table) find(ctx context.Context, key [32]byte, limit time.Duration, ask func(context.Context, peer.ID) ([]peer.ID, error)) []peer.ID {
	place := hashOf(tableKey(key))
	mask := maskedTarget(place)
	masked := walk{
		self: t.host.ID(), target: hashOf(mask), seeds: t.nearest(string(mask)),
		enough: enoughMasked, abreast: 2,
		ask: func(ctx context.Context, p peer.ID) ([]peer.ID, error) { return t.askCloser(ctx, p, mask) },
	}
	maskedCtx, cancel := context.WithTimeout(ctx, maskTime)
	seeds := masked.run(maskedCtx)
	cancel()
	// What the table knows near the key is no secret to us; it only costs rank.
	for _, p := range t.nearest(tableKey(key)) {
		if !slices.Contains(seeds, p) {
			seeds = append(seeds, p)
		}
	}
	slices.SortFunc(seeds, func(a, b peer.ID) int {
		x, y := hashOf(a).distance(place), hashOf(b).distance(place)
		return slices.Compare(x[:], y[:])
	})
	shown := walk{
		self: t.host.ID(), target: place, seeds: seeds,
		enough: enoughKey, abreast: 1, patient: true, ask: ask,
	}
	ctx, cancel = context.WithTimeout(ctx, limit)
	defer cancel()
	return shown.run(ctx)
}

func (t *table) nearest(key string) []peer.ID {
	return t.dht.RoutingTable().NearestPeers(kbucket.ConvertKey(key), closest)
}

// askCloser asks a node for the nodes it knows nearest to a target.
func (t *table) askCloser(ctx context.Context, p peer.ID, target peer.ID) ([]peer.ID, error) {
	infos, err := t.pm.GetClosestPeers(ctx, p, target)
	if err != nil {
		t.failed(ctx, p)
		return nil, err
	}
	return t.learn(infos), nil
}

// askRecord asks a node for a record and the nodes it knows nearest to it. The
// record is nil if the node has none.
func (t *table) askRecord(ctx context.Context, p peer.ID, key [32]byte) ([]byte, []peer.ID, error) {
	record, infos, err := t.pm.GetValue(ctx, p, tableKey(key))
	if err != nil {
		t.failed(ctx, p)
		return nil, nil, err
	}
	return record.GetValue(), t.learn(infos), nil
}

// askStore asks a node to keep a record.
func (t *table) askStore(ctx context.Context, p peer.ID, key [32]byte, record []byte) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	req := pb.NewMessage(pb.Message_PUT_VALUE, []byte(tableKey(key)), 0)
	req.Record = &recpb.Record{Key: req.Key, Value: record}
	resp, err := t.dht.MessageSender().SendRequest(ctx, p, req)
	if err != nil {
		return err
	}
	if !bytes.Equal(resp.GetRecord().GetValue(), record) {
		return errNotStored
	}
	return nil
}

var errNotStored = errors.New("the node did not store the record")

// failed drops a node that did not answer from the routing table, unless it was
// we who gave up.
func (t *table) failed(ctx context.Context, p peer.ID) {
	if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.dht.RoutingTable().RemovePeer(p)
	}
}

// learn takes the nodes that an answer names, at most closest: Ed25519 only,
// addresses bounded, and on the open internet not many of one network.
func (t *table) learn(infos []*peer.AddrInfo) []peer.ID {
	var ids []peer.ID
	perNetwork := make(map[string]int)
	for _, info := range infos {
		if len(ids) == closest {
			break
		}
		if info == nil || !isEd25519(info.ID) || info.ID == t.host.ID() || slices.Contains(ids, info.ID) {
			continue
		}
		addrs := t.keep(info.Addrs)
		if len(addrs) == 0 && len(t.guarded.Peerstore().Addrs(info.ID)) == 0 {
			continue
		}
		if t.cfg.Public {
			n := networkOf(peer.AddrInfo{ID: info.ID, Addrs: addrs})
			if perNetwork[n]++; perNetwork[n] > maxPerAnswer {
				continue
			}
		}
		if t.host.Network().Connectedness(info.ID) != network.Connected {
			t.host.Peerstore().AddAddrs(info.ID, addrs, peerstore.TempAddrTTL)
		}
		ids = append(ids, info.ID)
	}
	return ids
}

// search shows the key to the nodes nearest to it and calls got for every
// answer, with a record or without (nil), until ctx ends or all have answered.
func (t *table) search(ctx context.Context, key [32]byte, got func(from peer.ID, record []byte)) {
	t.find(ctx, key, findTime, func(ctx context.Context, p peer.ID) ([]peer.ID, error) {
		record, closer, err := t.askRecord(ctx, p, key)
		if err != nil {
			return nil, err
		}
		got(p, record)
		return closer, nil
	})
}

// publish leaves a record with the copies nearest nodes that take it, and reads
// it back from each of them.
func (t *table) publish(ctx context.Context, key [32]byte, record []byte) Published {
	nearest := t.find(ctx, key, nearTime, func(ctx context.Context, p peer.ID) ([]peer.ID, error) {
		return t.askCloser(ctx, p, peer.ID(tableKey(key)))
	})
	nearest = nearest[:min(len(nearest), closest)]

	// A node that refuses is replaced by the next, until all were asked.
	var published Published
	kept := make([]bool, len(nearest))
	next := 0
	for ctx.Err() == nil && published.Stored < copies && next < len(nearest) {
		batch := nearest[next:min(next+copies-published.Stored, len(nearest))]
		var asking sync.WaitGroup
		for i, p := range batch {
			asking.Go(func() { kept[next+i] = t.askStore(ctx, p, key, record) == nil })
		}
		asking.Wait()
		published.Asked += len(batch)
		for range batch {
			if kept[next] {
				published.Stored++
			}
			next++
		}
	}

	var mu sync.Mutex
	var asking sync.WaitGroup
	for i, p := range nearest {
		if !kept[i] {
			continue
		}
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTime)
			defer cancel()
			back, _, err := t.askRecord(ctx, p, key)
			if err != nil || !bytes.Equal(back, record) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			published.Confirmed++
		})
	}
	asking.Wait()
	return published
}

// repair is a record that some nodes lacked.
type repair struct {
	key    [32]byte
	record []byte
	to     []peer.ID
}

// repair gives a record back to nodes that lacked it. Nobody is told how it went.
func (t *table) repair(ctx context.Context, r repair) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var asking sync.WaitGroup
	for _, p := range r.to {
		asking.Go(func() { _ = t.askStore(ctx, p, r.key, r.record) })
	}
	asking.Wait()
}

// jitter spreads a pause by half of it in both directions.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }
