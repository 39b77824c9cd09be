package discovery_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/rendezvous"
)

// member is one host with its discovery.
type member struct {
	*discovery.Discovery
	host *transport.Host
	stop func() // ends Run and waits for it
}

// world is a simulated network of community nodes.
type world struct {
	t       *testing.T
	net     *nodetest.Network
	servers []*member
	next    int
}

// newWorld makes count community nodes that know the first two.
func newWorld(t *testing.T, n *nodetest.Network, count int) *world {
	t.Helper()
	w := &world{t: t, net: n}
	for range count {
		w.servers = append(w.servers, w.member(discovery.Config{Server: true}))
	}
	w.settle()
	return w
}

// settle lets everybody join and fill their tables.
func (w *world) settle() { time.Sleep(time.Minute) }

func (w *world) ways(count int) (infos []peer.AddrInfo) {
	for _, s := range w.servers[:min(count, len(w.servers))] {
		infos = append(infos, nodetest.AddrInfo(w.t, s.host))
	}
	return infos
}

// member makes a host on a machine of its own and runs a discovery there.
func (w *world) member(cfg discovery.Config) *member {
	w.t.Helper()
	role, memory := transport.Errands, int64(transport.UserMemory)
	if cfg.Server {
		role, memory = transport.Community, transport.CommunityMemory
	}
	h := w.net.Host(w.t, transport.Config{Role: role, Memory: memory}, nodetest.IP(w.next))
	w.next++
	if cfg.Bootstrap == nil {
		cfg.Bootstrap = w.ways(2)
	}
	cfg.Host, cfg.Public = h, true
	return run(w.t, h, cfg)
}

// run runs a discovery until the test ends or stop is called.
func run(t testing.TB, h *transport.Host, cfg discovery.Config) *member {
	t.Helper()
	d, err := discovery.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	stopped := false
	m := &member{Discovery: d, host: h}
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run returned %v", err)
		}
	}
	t.Cleanup(m.stop)
	return m
}

// person derives the points of somebody's day.
func person(t testing.TB, day time.Time) [rendezvous.Points]rendezvous.Point {
	t.Helper()
	var secret protocol.RendezvousSecret
	var device identity.DeviceHash
	_, _ = rand.Read(secret[:])
	_, _ = rand.Read(device[:])
	return rendezvous.Derive(secret, device, rendezvous.Day(day))
}

func address(i int) []byte {
	return ma.StringCast(fmt.Sprintf("/ip4/%s/tcp/4001", nodetest.IP(i))).Bytes()
}

func seal(t testing.TB, p rendezvous.Point, seq uint64, now time.Time, addresses ...[]byte) []byte {
	t.Helper()
	if len(addresses) == 0 {
		addresses = [][]byte{address(1)}
	}
	record, err := p.Seal(seq, now.Add(24*time.Hour), rendezvous.Body{Addresses: addresses})
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// announce publishes the same record at all points.
func (m *member) announce(t testing.TB, points []rendezvous.Point, seq uint64) (all []discovery.Published) {
	t.Helper()
	for _, p := range points {
		published, err := m.Announce(t.Context(), p, seal(t, p, seq, time.Now()))
		if err != nil {
			t.Errorf("announce: %v (%+v)", err, published)
		}
		all = append(all, published)
	}
	return all
}

func (m *member) find(t testing.TB, points []rendezvous.Point) (discovery.Found, time.Duration) {
	t.Helper()
	start := time.Now()
	found, err := m.Find(t.Context(), points)
	if err != nil {
		t.Errorf("find: %v", err)
	}
	return found, time.Since(start)
}

// withKey gives a host an identity.
func withKey(t testing.TB, cfg transport.Config) transport.Config {
	t.Helper()
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Key = key
	return cfg
}
