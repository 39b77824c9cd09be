package discovery

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/rendezvous"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newPoint() rendezvous.Point {
	var secret protocol.RendezvousSecret
	var device identity.DeviceHash
	_, _ = rand.Read(secret[:])
	return rendezvous.Derive(secret, device, rendezvous.Day(noon))[0]
}

func sealed(t testing.TB, p rendezvous.Point, seq uint64, expiry time.Time) (key string, value []byte) {
	t.Helper()
	value, err := p.Seal(seq, expiry, rendezvous.Body{Addresses: [][]byte{{4, 1, 2, 3, 4, 6, 15, 161}}})
	if err != nil {
		t.Fatal(err)
	}
	return tableKey(p.Key()), value
}

// asKad is the store as kad-dht wraps it.
func asKad(v *valueStore) *records.ValueStore { return records.NewValueStore(v, v.validator(), 0) }

// What docs/spec/discovery.md, section 4, lets into the store, and what not.
func TestStoreAdmits(t *testing.T) {
	v := newValueStore(hash{}, storeMemory, func() time.Time { return noon })
	kad := asKad(v)
	p := newPoint()
	key, first := sealed(t, p, 1, noon.Add(time.Hour))
	_, second := sealed(t, p, 2, noon.Add(2*time.Hour))
	_, expired := sealed(t, p, 3, noon.Add(-time.Hour))
	_, far := sealed(t, p, 3, noon.Add(protocol.MaxRecordLife+2*time.Hour))
	other, _ := sealed(t, newPoint(), 1, noon.Add(time.Hour))
	forged := append([]byte(nil), second...)
	forged[len(forged)-1] ^= 1
	get := func() []byte {
		rec, err := kad.Get(context.Background(), key)
		if err != nil {
			t.Fatal(err)
		}
		return rec.GetValue()
	}
	for _, tc := range []struct {
		name       string
		key        string
		value      []byte
		ok         bool
		afterwards []byte
	}{
		{"forged", key, forged, false, nil},
		{"under another key", other, first, false, nil},
		{"key without prefix", key[len(keyPrefix):], first, false, nil},
		{"first", key, first, true, first},
		{"again", key, first, true, first},
		{"newer", key, second, true, second},
		{"E04: older", key, first, false, second},
		{"E04: expired", key, expired, false, second},
		{"too far ahead", key, far, false, second},
		{"short", key, second[:100], false, second},
		{"long", key, append(append([]byte(nil), second...), 0), false, second},
		{"empty", key, nil, false, second},
	} {
		err := v.admit(tc.key, tc.value, "peer", "addr")
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
		if got := get(); string(got) != string(tc.afterwards) {
			t.Errorf("%s: kad-dht finds another record", tc.name)
		}
	}
	// kad-dht's own put takes what was admitted, and nothing else.
	if err := kad.Put(context.Background(), key, &recpb.Record{Key: []byte(key), Value: second}); err != nil {
		t.Errorf("put of an admitted record: %v", err)
	}
	strange, value := sealed(t, newPoint(), 1, noon.Add(time.Hour))
	if err := kad.Put(context.Background(), strange, &recpb.Record{Key: []byte(strange), Value: value}); err == nil {
		t.Error("put of a record that was not admitted succeeded")
	}
	if v.count() != 1 {
		t.Errorf("%d records, want 1", v.count())
	}
}

// TestE14_ClockJumps: a record stays as long as it stated when it came, however
// the clock on the wall jumps.
func TestE14_ClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wall := noon
		v := newValueStore(hash{}, storeMemory, func() time.Time { return wall })
		key, value := sealed(t, newPoint(), 1, noon.Add(24*time.Hour))
		if err := v.admit(key, value, "peer", "addr"); err != nil {
			t.Fatal(err)
		}
		has := func() bool {
			rec, err := asKad(v).Get(context.Background(), key)
			return err == nil && rec != nil
		}
		for _, jump := range []time.Duration{10 * 365 * 24 * time.Hour, -10 * 365 * 24 * time.Hour, 0} {
			wall = noon.Add(jump)
			if !has() {
				t.Errorf("gone after a jump of %v", jump)
			}
		}
		wall = noon.Add(-365 * 24 * time.Hour)
		time.Sleep(24*time.Hour - time.Second)
		if !has() {
			t.Error("gone before its time")
		}
		time.Sleep(2 * time.Second)
		if has() || v.count() != 0 {
			t.Error("kept beyond its time")
		}
		if len(v.origins) != 0 || v.used != 0 {
			t.Errorf("accounts left: %v, %d bytes", v.origins, v.used)
		}
	})
}

// fill makes values that only look like records, fast: for the store's own
// bookkeeping, behind the validator.
func fill(v *valueStore, count int, from func(i int) (string, string)) {
	for i := range count {
		var key hash
		_, _ = rand.Read(key[:])
		value := make([]byte, protocol.RecordSize)
		binary.BigEndian.PutUint64(value[expiryAt:], uint64(noon.Add(time.Hour).Unix()))
		peer, addr := from(i)
		v.mu.Lock()
		v.insertLocked(tableKey(key), value, originsOf(peer, addr))
		v.mu.Unlock()
	}
}

// TestE05_FloodOfJunk puts many records from many sources into a small store:
// memory stays bounded, a source stays within its quota, and the records near
// us survive. KITH_SOAK=1 puts a million into a store of the real size.
func TestE05_FloodOfJunk(t *testing.T) {
	count, memory := 20_000, int64(4<<20)
	if os.Getenv("KITH_SOAK") != "" {
		count, memory = 1_000_000, storeMemory
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var self hash
	v := newValueStore(self, memory, func() time.Time { return noon })

	// Ten honest records belong here: their keys share eight bits with us.
	var honest []string
	for len(honest) < 10 {
		p := newPoint()
		if hashOf(tableKey(p.Key())).shared(self) < 8 {
			continue
		}
		key, value := sealed(t, p, 1, noon.Add(time.Hour))
		if err := v.admit(key, value, "honest", "honest addr"); err != nil {
			t.Fatal(err)
		}
		honest = append(honest, key)
	}
	fill(v, count, func(i int) (string, string) { return fmt.Sprint("peer", i/200), fmt.Sprint("addr", i/2000) })
	if v.used > memory {
		t.Errorf("%d bytes used of %d", v.used, memory)
	}
	for _, key := range honest {
		if v.entries[key] == nil {
			t.Error("a record near us was pushed out by junk")
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d puts: %d records, heap grew by %.1f MiB of %.0f allowed", count, v.count(), float64(grown)/(1<<20), float64(memory)/(1<<20))
	if grown > memory+memory/4 {
		t.Errorf("heap grew by %d bytes with a bound of %d", grown, memory)
	}
	runtime.KeepAlive(v)
}

func TestE05_Quotas(t *testing.T) {
	v := newValueStore(hash{}, 2*storeMemory, func() time.Time { return noon }) // with room for all
	put := func(peer, addr string) error {
		key, value := sealed(t, newPoint(), 1, noon.Add(time.Hour))
		return v.admit(key, value, peer, addr)
	}
	fill(v, maxPerPeer-1, func(int) (string, string) { return "greedy", "a" })
	if err := put("greedy", "a"); err != nil {
		t.Fatalf("the last of the quota: %v", err)
	}
	if err := put("greedy", "b"); !errors.Is(err, errQuota) {
		t.Errorf("beyond the peer's quota: %v", err)
	}
	if err := put("other", "a"); err != nil {
		t.Errorf("another peer: %v", err)
	}
	fill(v, maxPerAddress-1, func(i int) (string, string) { return fmt.Sprint(i), "crowded" })
	if err := put("the last", "crowded"); err != nil {
		t.Errorf("the last of the address's quota: %v", err)
	}
	if err := put("one more", "crowded"); !errors.Is(err, errQuota) {
		t.Errorf("beyond the address's quota: %v", err)
	}
	if err := put("one more", "empty"); err != nil {
		t.Errorf("another address: %v", err)
	}
}

// TestE05_QuotaEnds: records that have expired take no place in the quota of who
// brought them, whether or not anybody else brings any.
func TestE05_QuotaEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		v := newValueStore(hash{}, storeMemory, func() time.Time { return noon.Add(time.Since(start)) })
		put := func() error {
			key, value := sealed(t, newPoint(), 1, noon.Add(12*time.Hour))
			return v.admit(key, value, "busy", "a")
		}
		fill(v, maxPerPeer, func(int) (string, string) { return "busy", "a" })
		if err := put(); !errors.Is(err, errQuota) {
			t.Errorf("beyond the quota: %v", err)
		}
		time.Sleep(time.Hour)
		if err := put(); err != nil {
			t.Errorf("when what was there has expired: %v", err)
		}
	})
}

// TestE05_FairShare: whoever has more than their share makes room for others, with
// what they brought longest ago, and nobody else does.
func TestE05_FairShare(t *testing.T) {
	for name, greedy := range map[string]func(i int) (peer, addr string){
		"a peer":     func(int) (string, string) { return "greedy", "a" },
		"an address": func(i int) (string, string) { return fmt.Sprint("name", i), "a" },
	} {
		t.Run(name, func(t *testing.T) {
			const room, modest, most, others = 14453, 1000, 8000, 11400
			v := newValueStore(hash{}, storeMemory, func() time.Time { return noon })
			fill(v, modest, func(int) (string, string) { return "modest", "b" })
			mine := slices.Collect(maps.Keys(v.entries))
			fill(v, most/2, greedy)
			early := slices.DeleteFunc(slices.Collect(maps.Keys(v.entries)), func(key string) bool { return slices.Contains(mine, key) })
			fill(v, most/2, greedy)
			fill(v, others, func(i int) (string, string) { return fmt.Sprint("other", i), fmt.Sprint("other", i/100) })
			if v.used > storeMemory || v.count() != room {
				t.Errorf("%d records, %d bytes", v.count(), v.used)
			}
			if got, want := v.origins[originName{addr: "a"}].records.Len(), room-modest-others; got != want {
				t.Errorf("the greedy have %d records, want %d", got, want)
			}
			for _, key := range mine {
				if v.entries[key] == nil {
					t.Fatal("a record of one who has few went")
				}
			}
			for _, key := range early {
				if v.entries[key] != nil {
					t.Fatal("of the greedy the early records stayed and later ones went")
				}
			}
		})
	}
}

// TestE05_GreedyPaysAlone: an address that brings most, under many names, pushes out
// what it brought itself. Nobody who brings less loses anything by it: not next door,
// not at the same address, and not under one name more than a name's share. A /64 of
// IPv6 is one address, however many of its own somebody calls from.
func TestE05_GreedyPaysAlone(t *testing.T) {
	for name, at := range map[string]struct {
		greedy     func(i int) string // where it calls from
		here, next string             // at the same address, and in the same network
	}{
		"IPv4": {func(int) string { return "203.0.113.7" }, "203.0.113.7", "203.0.113.8"},
		"IPv6": {func(i int) string { return fmt.Sprintf("2001:db8:0:7::%x", i+1) }, "2001:db8:0:7:ffff::1", "2001:db8:0:8::1"},
	} {
		t.Run(name, func(t *testing.T) {
			source := func(ip string) string {
				addr, err := manet.FromIP(net.ParseIP(ip))
				if err != nil {
					t.Fatal(err)
				}
				return sourceOf(addr)
			}
			const names, few, many, most, others = 16, 100, 2000, 12_000, 90
			v := newValueStore(hash{}, storeMemory, func() time.Time { return noon })
			fill(v, few, func(int) (string, string) { return "here", source(at.here) })
			fill(v, few, func(int) (string, string) { return "next", source(at.next) })
			fill(v, many, func(int) (string, string) { return "far", source("198.51.100.1") })
			modest := slices.Collect(maps.Keys(v.entries))
			greedy := func(i int) (string, string) { return fmt.Sprint("greedy", i%names), source(at.greedy(i)) }
			fill(v, most, greedy)
			fill(v, most, greedy) // past its quota: the store makes room for each of them
			for i := range others {
				fill(v, 100, func(int) (string, string) { return fmt.Sprint("other", i), fmt.Sprint("other", i) })
				fill(v, 100, greedy)
			}
			lost := make(map[string]int)
			for _, key := range modest {
				if v.entries[key] == nil {
					lost["modest"]++
				}
			}
			for i := range others {
				lost["others"] += 100 - v.origins[originName{peer: fmt.Sprint("other", i)}].records.Len()
			}
			if lost["modest"] != 0 || lost["others"] != 0 {
				t.Errorf("lost by %d greedy names at one address: %v", names, lost)
			}
			if got, want := v.origins[originName{addr: source(at.here)}].records.Len(), v.count()-few-many-others*100; got != want {
				t.Errorf("%d records at the greedy address, want %d", got, want)
			}
			for i := range names { // it pays by turns
				n := v.origins[originName{peer: fmt.Sprint("greedy", i)}].records.Len()
				if mean := v.origins[originName{addr: source(at.here)}].records.Len() / names; n < mean-few || n > mean+few {
					t.Errorf("one of the greedy names has %d records, %d on average", n, mean)
				}
			}
		})
	}
}

// TestE05_FiveHundredContacts: one user adds 500 contacts in a day, at three nodes
// that keep everything of everybody's. All records find room, and go on doing so in
// the days after, with as many invites open as there may be.
func TestE05_FiveHundredContacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newValueStore(hash{}, storeMemory, time.Now)
		audience := func() (all [4][]rendezvous.Point) {
			var secret protocol.RendezvousSecret
			var device identity.DeviceHash
			_, _ = rand.Read(secret[:])
			for day := range all {
				points := rendezvous.Derive(secret, device, rendezvous.Day(time.Now())+int64(day))
				all[day] = points[:]
			}
			return all
		}
		seq := uint64(0)
		announce := func(points []rendezvous.Point) {
			t.Helper()
			seq++
			for _, p := range points {
				key, value := sealed(t, p, seq, time.Now().Add(24*time.Hour))
				if err := v.admit(key, value, "user", "place"); err != nil {
					t.Fatalf("after %d records: %v", v.count(), err)
				}
			}
		}
		var contacts, invites [][4][]rendezvous.Point
		for range 500 {
			invite, contact := audience(), audience()
			contacts = append(contacts, contact)
			for _, a := range [][4][]rendezvous.Point{invite, contact} {
				announce(a[0])
				announce(a[1])
			}
		}
		for range 76 {
			invites = append(invites, audience())
			announce(invites[len(invites)-1][0])
			announce(invites[len(invites)-1][1])
		}
		for day := 1; day <= 2; day++ {
			time.Sleep(24*time.Hour - time.Second)
			for _, a := range slices.Concat(contacts, invites) {
				announce(a[day])
				announce(a[day+1])
			}
			t.Logf("day %d: %d records, %d MiB", day, v.count(), v.used>>20)
		}
	})
}

// TestE13_NothingOnDisk: the store has no way to keep anything.
func TestE13_NothingOnDisk(t *testing.T) {
	v := newValueStore(hash{}, storeMemory, func() time.Time { return noon })
	if _, err := v.Batch(context.Background()); err == nil {
		t.Error("the store takes batches")
	}
	if err := v.Put(context.Background(), ds.NewKey("/r/AAAA"), []byte("x")); err == nil || v.count() != 0 {
		t.Error("the store keeps what nobody admitted")
	}
}

func FuzzValidator(f *testing.F) {
	p := newPoint()
	key, value := sealed(f, p, 1, noon.Add(time.Hour))
	f.Add(key, value)
	f.Add(key, value[:len(value)-1])
	f.Add("/r/short", value)
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		v := newValueStore(hash{}, storeMemory, func() time.Time { return noon })
		if v.admit(key, value, "peer", "addr") != nil {
			if v.count() != 0 {
				t.Fatal("kept what it refused")
			}
			return
		}
		if len(value) != protocol.RecordSize || len(key) != len(keyPrefix)+len(hash{}) {
			t.Fatal("admitted a record of another size")
		}
		rec, err := asKad(v).Get(context.Background(), key)
		if err != nil || string(rec.GetValue()) != string(value) {
			t.Fatal("what was admitted does not come back")
		}
	})
}
