package discovery

import (
	"container/list"
	"context"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	record "github.com/libp2p/go-libp2p-record"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/rendezvous"
)

const (
	// storeMemory bounds the records that a server keeps by default; about
	// 14,000 records.
	storeMemory = 64 << 20
	// recordOverhead is what an entry costs beside its record, roughly.
	recordOverhead = 512
	// maxPerPeer and maxPerAddress bound the records that one peer, and one
	// address (/64 of IPv6), may have here. Where there are no more nodes than keep
	// a record, a user's every record is here, under the one name that a run has. A
	// contact, or an open invite, is 6 of them, the points of two days, and 9 from
	// midnight on, until yesterday's end: 4,500 for 500 contacts. One who was added
	// today is 6 for the invite more: 500 in one day are 7,500 in the night after it,
	// and the rest is for 76 open invites. A household has one such user, and others.
	maxPerPeer    = 8 << 10
	maxPerAddress = 12 << 10
	// peerShare and addressShare are what no other source can take from one while
	// the store is full: of those who have more, whoever has most goes first.
	peerShare    = 1024
	addressShare = 2048
	// maxAge bounds how long a record is kept, whatever it says.
	maxAge = protocol.MaxRecordLife
	// nearBuckets is how finely nearness decides who goes first: beyond so many
	// shared bits all records are as near as can be.
	nearBuckets = 24
)

// valueStore keeps records for others, in memory only. A record enters through
// admitRequest, which knows who brought it; kad-dht then finds it here. When
// memory runs out, whoever has most, of those with more than their share, loses what
// they brought longest ago; of an address, the peer that has most there. If nobody
// has more, the record farthest from us goes, and of those the one that was not asked
// for longest: junk must be ground to our place, and come from many places, to push
// out what belongs here (threats E05).
type valueStore struct {
	self   hash
	memory int64
	now    func() time.Time // for the expiry that a record states

	mu      sync.Mutex
	entries map[string]*entry      // by the table's key
	order   [nearBuckets]list.List // of *entry, by nearness; in each the latest used first
	origins map[originName]*origin
	greedy  map[*origin]struct{} // those with more than their share
	used    int64
}

type entry struct {
	key    string
	value  []byte
	from   [3]*origin // its peer, its address, and its peer at its address
	ofFrom [3]*list.Element
	until  time.Time // by the monotonic clock: wall clocks jump
	bucket int
	at     *list.Element
}

// originName names a peer, an address, or a peer at an address that brings records.
type originName struct{ peer, addr string }

func originsOf(peer, addr string) [3]originName {
	return [3]originName{{peer: peer}, {addr: addr}, {peer, addr}}
}

// most is how many records the source may have at all, and share how many when
// there is no room. Those of a peer at an address are the peer's and the address's.
func (n originName) most() int {
	switch {
	case n.addr == "":
		return maxPerPeer
	case n.peer == "":
		return maxPerAddress
	}
	return math.MaxInt
}

func (n originName) share() int {
	switch {
	case n.addr == "":
		return peerShare
	case n.peer == "":
		return addressShare
	}
	return math.MaxInt
}

// origin is what one of them brought.
type origin struct {
	name    originName
	records list.List // of *entry, the latest brought first

	// Of an address: its peers, as *origin, by how many records they have there, the
	// latest to have as many first. The last list is of those that have most.
	peers []*list.List
	// Of a peer at an address: where it stands there.
	standing *list.Element
}

// rank notes at an address that a peer has another number of records there than
// it had.
func (o *origin) rank(peer *origin, had int) {
	if had > 0 {
		o.peers[had].Remove(peer.standing)
	}
	if has := peer.records.Len(); has > 0 {
		for len(o.peers) <= has {
			o.peers = append(o.peers, list.New())
		}
		peer.standing = o.peers[has].PushFront(peer)
	}
	if last := len(o.peers) - 1; o.peers[last].Len() == 0 {
		o.peers = o.peers[:last] // who was there has one less
	}
}

var (
	_ ds.Batching      = (*valueStore)(nil)
	_ record.Validator = recordValidator{}
)

func newValueStore(self hash, memory int64, now func() time.Time) *valueStore {
	return &valueStore{
		self: self, memory: memory, now: now,
		entries: make(map[string]*entry), origins: make(map[originName]*origin), greedy: make(map[*origin]struct{}),
	}
}

func (v *valueStore) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.entries)
}

// recordValidator is the table's rule for records (docs/spec/discovery.md, section 4).
type recordValidator struct{ now func() time.Time }

func (v *valueStore) validator() record.Validator { return recordValidator{v.now} }

// Validate implements record.Validator.
func (r recordValidator) Validate(key string, value []byte) error {
	point, ok := strings.CutPrefix(key, keyPrefix)
	if !ok || len(point) != len(hash{}) {
		return errKey
	}
	return rendezvous.Validate([]byte(point), value, r.now())
}

// Select implements record.Validator.
func (recordValidator) Select(_ string, values [][]byte) (int, error) {
	return rendezvous.Select(values)
}

var (
	errKey    = errors.New("the key is not that of a rendezvous point")
	errQuota  = errors.New("the source has too many records here")
	errOlder  = errors.New("a newer record is here")
	errUnused = errors.New("the record store does not support this")
)

// admitRequest is kad-dht's request hook. It stores the record of a request to
// store, if it may be; what it refuses loses its record, and kad-dht refuses it
// in turn. It also cuts what no request may carry.
func (v *valueStore) admitRequest(_ context.Context, s network.Stream, req *pb.Message) {
	req.CloserPeers, req.ProviderPeers = nil, nil
	if req.GetType() != pb.Message_PUT_VALUE {
		req.Record = nil
		return
	}
	key, value := string(req.GetKey()), req.GetRecord().GetValue()
	if v.admit(key, value, string(s.Conn().RemotePeer()), sourceOf(s.Conn().RemoteMultiaddr())) != nil {
		req.Record = nil
	}
}

// sourceOf is the address that counts as one source: one of IPv4, a /64 of IPv6.
func sourceOf(a ma.Multiaddr) string {
	if prefix, ok := addrPrefix(a, 32, 64); ok {
		return prefix.String()
	}
	return "unknown"
}

// admit stores a record for its source.
func (v *valueStore) admit(key string, value []byte, from, addr string) error {
	if len(value) != protocol.RecordSize {
		return errKey
	}
	origins := originsOf(from, addr)
	v.mu.Lock()
	full := v.entries[key] == nil && v.fullLocked(origins)
	v.mu.Unlock()
	if full {
		return errQuota // before the signature is looked at
	}
	check := recordValidator{v.now}
	if err := check.Validate(key, value); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sweepLocked()
	if e := v.entries[key]; e != nil {
		best, err := check.Select(key, [][]byte{value, e.value})
		if err != nil || best != 0 {
			return errOlder
		}
		e.value = append(e.value[:0:0], value...)
		e.until = time.Now().Add(v.life(value))
		v.order[e.bucket].MoveToFront(e.at)
		for i, s := range e.from {
			s.records.MoveToFront(e.ofFrom[i])
		}
		return nil
	}
	if v.fullLocked(origins) {
		return errQuota
	}
	v.insertLocked(key, append([]byte(nil), value...), origins)
	return nil
}

// fullLocked says whether one of a record's sources may bring no more. What it
// brought longest ago and has expired does not count: the sweep may not have come by.
func (v *valueStore) fullLocked(origins [3]originName) bool {
	return slices.ContainsFunc(origins[:], func(n originName) bool {
		for {
			s := v.origins[n]
			if s == nil || s.records.Len() < n.most() {
				return false
			}
			eldest := s.records.Back().Value.(*entry)
			if time.Until(eldest.until) > 0 {
				return true
			}
			v.removeLocked(eldest)
		}
	})
}

// insertLocked adds a record and makes room for it.
func (v *valueStore) insertLocked(key string, value []byte, from [3]originName) {
	e := &entry{
		key: key, value: value,
		until:  time.Now().Add(v.life(value)),
		bucket: min(hashOf(key).shared(v.self), nearBuckets-1),
	}
	v.entries[key] = e
	e.at = v.order[e.bucket].PushFront(e)
	for i, name := range from {
		s := v.origins[name]
		if s == nil {
			s = &origin{name: name}
			v.origins[name] = s
		}
		e.from[i] = s
		e.ofFrom[i] = s.records.PushFront(e)
		if s.records.Len() > name.share() {
			v.greedy[s] = struct{}{}
		}
	}
	e.from[1].rank(e.from[2], e.from[2].records.Len()-1)
	v.used += e.size()
	for v.used > v.memory {
		v.evictLocked()
	}
}

// expiryAt is where a record states its expiry, in seconds (docs/spec/rendezvous.md,
// section 4).
const expiryAt = 1 + 32 + 8

// life returns how long a valid record may stay: what it states, and no longer
// than maxAge.
func (v *valueStore) life(value []byte) time.Duration {
	expiry := time.Unix(int64(binary.BigEndian.Uint64(value[expiryAt:])), 0)
	return min(expiry.Sub(v.now()), maxAge)
}

func (e *entry) size() int64 { return int64(len(e.key) + len(e.value) + recordOverhead) }

// evictLocked removes what the source brought longest ago that has most, if it has
// more than its share, or else the farthest record that was used longest ago. Of an
// address it is the peer that has most there, and of such peers the one that has had
// as much for longest: whoever brings less under the same address keeps it.
func (v *valueStore) evictLocked() {
	var greediest *origin
	for s := range v.greedy { // few: each has a good part of the store
		if greediest == nil || s.records.Len() > greediest.records.Len() {
			greediest = s
		}
	}
	if greediest != nil {
		if last := len(greediest.peers) - 1; last > 0 {
			greediest = greediest.peers[last].Back().Value.(*origin)
		}
		v.removeLocked(greediest.records.Back().Value.(*entry))
		return
	}
	for i := range v.order {
		if last := v.order[i].Back(); last != nil {
			v.removeLocked(last.Value.(*entry))
			return
		}
	}
}

// sweepLocked removes what has expired, a few records at a time, so that no
// request pays for all of them.
func (v *valueStore) sweepLocked() {
	const few = 8
	seen := 0
	for _, e := range v.entries { // in random order
		if seen++; seen > few {
			return
		}
		if time.Until(e.until) <= 0 {
			v.removeLocked(e)
		}
	}
}

func (v *valueStore) removeLocked(e *entry) {
	delete(v.entries, e.key)
	v.order[e.bucket].Remove(e.at)
	v.used -= e.size()
	for i, s := range e.from {
		s.records.Remove(e.ofFrom[i])
		if s.records.Len() <= s.name.share() {
			delete(v.greedy, s)
		}
		if s.records.Len() == 0 {
			delete(v.origins, s.name)
		}
	}
	e.from[1].rank(e.from[2], e.from[2].records.Len()+1)
}

// value returns the record under one of the table's keys, or nil.
func (v *valueStore) value(key string) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.entries[key]
	if e == nil || time.Until(e.until) <= 0 {
		return nil
	}
	return e.value
}

// lookup returns the entry that kad-dht files under a datastore key.
func (v *valueStore) lookupLocked(k ds.Key) *entry {
	name := k.BaseNamespace()
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(name)
	if err != nil {
		return nil
	}
	e := v.entries[string(key)]
	if e != nil && time.Until(e.until) <= 0 {
		v.removeLocked(e)
		return nil
	}
	return e
}

// Get implements ds.Datastore for kad-dht.
func (v *valueStore) Get(_ context.Context, k ds.Key) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.lookupLocked(k)
	if e == nil {
		return nil, ds.ErrNotFound
	}
	v.order[e.bucket].MoveToFront(e.at)
	return proto.Marshal(&recpb.Record{Key: []byte(e.key), Value: e.value})
}

// Put implements ds.Datastore. What kad-dht stores was admitted before, or is
// not stored.
func (v *valueStore) Put(_ context.Context, k ds.Key, _ []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.lookupLocked(k) == nil {
		return errQuota
	}
	return nil
}

// Has implements ds.Datastore.
func (v *valueStore) Has(_ context.Context, k ds.Key) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lookupLocked(k) != nil, nil
}

// GetSize implements ds.Datastore.
func (v *valueStore) GetSize(ctx context.Context, k ds.Key) (int, error) {
	return ds.GetBackedSize(ctx, v, k)
}

// Delete implements ds.Datastore.
func (v *valueStore) Delete(_ context.Context, k ds.Key) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.lookupLocked(k); e != nil {
		v.removeLocked(e)
	}
	return nil
}

// Query implements ds.Datastore; only kad-dht's own sweep would use it, which is off.
func (v *valueStore) Query(context.Context, query.Query) (query.Results, error) {
	return nil, errUnused
}

// Batch implements ds.Batching; only provider records would use it.
func (v *valueStore) Batch(context.Context) (ds.Batch, error) { return nil, errUnused }

// Sync implements ds.Datastore: nothing here is durable.
func (v *valueStore) Sync(context.Context, ds.Key) error { return nil }

// Close implements ds.Datastore.
func (v *valueStore) Close() error { return nil }
