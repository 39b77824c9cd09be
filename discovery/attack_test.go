package discovery_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	recpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol/rendezvous"
)

// dhtProtocol is written out, so that a change of it is a change of the wire.
const dhtProtocol = "/lan/kad/1.0.0"

// evil serves the table's protocol with answers of its own. A nil answer resets
// the stream.
func evil(h host.Host, answer func(from peer.ID, req *pb.Message) *pb.Message) {
	h.SetStreamHandler(dhtProtocol, func(s network.Stream) {
		defer s.Close()
		for {
			req, err := readMessage(s)
			if err != nil {
				return
			}
			resp := answer(s.Conn().RemotePeer(), req)
			if resp == nil {
				_ = s.Reset()
				return
			}
			if writeMessage(s, resp) != nil {
				return
			}
		}
	})
}

type byteReader struct{ io.Reader }

func (b byteReader) ReadByte() (byte, error) {
	var one [1]byte
	_, err := io.ReadFull(b, one[:])
	return one[0], err
}

func readMessage(r io.Reader) (*pb.Message, error) {
	size, err := binary.ReadUvarint(byteReader{r})
	if err != nil || size > 64<<10 {
		return nil, errors.Join(err, errors.New("no frame"))
	}
	buf := make([]byte, size)
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, err
	}
	m := new(pb.Message)
	return m, proto.Unmarshal(buf, m)
}

func writeMessage(w io.Writer, m *pb.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.AppendUvarint(nil, uint64(len(body))), body...))
	return err
}

// request sends one message as a stranger would and returns the answer.
func request(ctx context.Context, from host.Host, to peer.ID, m *pb.Message) (*pb.Message, error) {
	s, err := from.NewStream(ctx, to, dhtProtocol)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := writeMessage(s, m); err != nil {
		return nil, err
	}
	return readMessage(s)
}

func dhtKey(p rendezvous.Point) []byte {
	key := p.Key()
	return append([]byte("/r/"), key[:]...)
}

func pbPeer(info peer.AddrInfo) *pb.Message_Peer {
	p := &pb.Message_Peer{Id: []byte(info.ID), Connection: pb.Message_CONNECTED}
	for _, a := range info.Addrs {
		p.Addrs = append(p.Addrs, a.Bytes())
	}
	return p
}

// evilHosts adds count servers that answer as they like, connected to an honest one.
func (w *world) evilHosts(count int, answer func(from peer.ID, req *pb.Message) *pb.Message) (infos []peer.AddrInfo) {
	for i := range count {
		h := w.net.Host(w.t, transport.Config{Role: transport.Community, Memory: 64 << 20}, nodetest.IP(w.next))
		w.next++
		evil(h, answer)
		for j := range 3 {
			if len(w.servers) > 0 {
				_ = h.Connect(w.t.Context(), nodetest.AddrInfo(w.t, w.servers[(3*i+j)%len(w.servers)].host))
			}
		}
		infos = append(infos, nodetest.AddrInfo(w.t, h))
	}
	return infos
}

func randomID(t testing.TB) peer.ID {
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestE01_PassiveSybils and TestE02_ActiveSybils: a quarter of the network are
// Sybils at random places; passive ones know nobody and keep nothing, active ones
// name only one another, and people nobody has ever met. Any of three points
// finds each of ten records.
func TestE01_PassiveSybils(t *testing.T) {
	sybils(t, func(infos *atomic.Pointer[[]peer.AddrInfo]) func(peer.ID, *pb.Message) *pb.Message {
		return func(_ peer.ID, req *pb.Message) *pb.Message { return pb.NewMessage(req.GetType(), req.Key, 0) }
	})
}

func TestE02_ActiveSybils(t *testing.T) {
	sybils(t, func(infos *atomic.Pointer[[]peer.AddrInfo]) func(peer.ID, *pb.Message) *pb.Message {
		return func(_ peer.ID, req *pb.Message) *pb.Message {
			if req.GetType() == pb.Message_PUT_VALUE {
				return req // "stored"
			}
			resp := pb.NewMessage(req.GetType(), req.Key, 0)
			if known := infos.Load(); known != nil {
				for _, info := range *known {
					resp.CloserPeers = append(resp.CloserPeers, pbPeer(info))
				}
			}
			for range 10 {
				resp.CloserPeers = append(resp.CloserPeers, pbPeer(peer.AddrInfo{
					ID: randomID(t), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/20.250.0.1/tcp/4001")},
				}))
			}
			return resp
		}
	})
}

func sybils(t *testing.T, answer func(*atomic.Pointer[[]peer.AddrInfo]) func(peer.ID, *pb.Message) *pb.Message) {
	honest, bad, readers := 12, 4, 2
	if os.Getenv("KITH_SOAK") != "" {
		honest, bad, readers = 60, 20, 10
	}
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		n.SetLatency(20 * time.Millisecond)
		w := newWorld(t, n, honest)
		var infos atomic.Pointer[[]peer.AddrInfo]
		liars := w.evilHosts(bad, answer(&infos))
		infos.Store(&liars)
		w.settle()
		writer := w.member(discovery.Config{})
		const records = 10
		var points [records][]rendezvous.Point
		for i := range points {
			p := person(t, time.Now())
			points[i] = p[:]
			writer.announce(t, points[i], 1)
		}
		for range readers {
			reader := w.member(discovery.Config{})
			for i := range points {
				if found, err := reader.Find(t.Context(), points[i]); err != nil || found.Seq != 1 {
					t.Errorf("record %d: %v", i, err)
				}
			}
		}
	})
}

// TestE04_Rollback: who has seen a record does not believe an older one at the
// same point, whoever serves it; a record of another day is at another point;
// an expired record is refused by servers and readers.
func TestE04_Rollback(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 3)
		points := person(t, time.Now())
		key := dhtKey(points[0])
		old := seal(t, points[0], 1, time.Now())
		serve := old
		rollback := func(_ peer.ID, req *pb.Message) *pb.Message {
			resp := pb.NewMessage(req.GetType(), req.Key, 0)
			if bytes.Equal(req.Key, key) {
				resp.Record = &recpb.Record{Key: key, Value: serve}
			}
			return resp
		}
		writer, reader := w.member(discovery.Config{}), w.member(discovery.Config{})
		writer.announce(t, points[:1], 2)
		if found, _ := reader.find(t, points[:1]); found.Seq != 2 {
			t.Fatalf("found %d, want 2", found.Seq)
		}

		// The network is replaced by one that serves the old record.
		for _, s := range w.servers {
			s.stop()
			s.host.Close()
		}
		w.servers = nil
		reader.AddWaysIn(w.evilHosts(3, rollback))
		w.settle()
		if found, err := reader.Find(t.Context(), points[:1]); !errors.Is(err, discovery.ErrNotFound) {
			t.Errorf("the older record: %+v, %v", found, err)
		}
		// Nor an expired one, for somebody who saw nothing yet.
		fresh := w.member(discovery.Config{Bootstrap: w.evilHosts(2, rollback)})
		w.settle()
		if found, err := fresh.Find(t.Context(), points[:1]); err != nil || found.Seq != 1 {
			t.Fatalf("the attack itself does not work: %v", err)
		}
		time.Sleep(25 * time.Hour)
		latecomer := w.member(discovery.Config{Bootstrap: w.evilHosts(2, rollback)})
		w.settle()
		if _, err := latecomer.Find(t.Context(), points[:1]); !errors.Is(err, discovery.ErrNotFound) {
			t.Errorf("an expired record: %v", err)
		}
		if _, err := latecomer.Announce(t.Context(), points[0], old); !errors.Is(err, rendezvous.ErrExpired) {
			t.Errorf("announcing an expired record: %v", err)
		}
	})
}

// TestE08_RejectingPeers: nodes that refuse, lie about storing, or answer a put
// without a record (which kad-dht's own put does not survive) confirm nothing.
func TestE08_RejectingPeers(t *testing.T) {
	for name, answer := range map[string]func(peer.ID, *pb.Message) *pb.Message{
		"refuse": func(_ peer.ID, req *pb.Message) *pb.Message {
			if req.GetType() == pb.Message_PUT_VALUE {
				return nil
			}
			return pb.NewMessage(req.GetType(), req.Key, 0)
		},
		"lie": func(_ peer.ID, req *pb.Message) *pb.Message {
			if req.GetType() == pb.Message_PUT_VALUE {
				return req
			}
			return pb.NewMessage(req.GetType(), req.Key, 0)
		},
		"no record": func(_ peer.ID, req *pb.Message) *pb.Message {
			return pb.NewMessage(req.GetType(), req.Key, 0)
		},
	} {
		nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
			w := &world{t: t, net: n}
			client := w.member(discovery.Config{Bootstrap: w.evilHosts(5, answer)})
			w.settle()
			points := person(t, time.Now())
			published, err := client.Announce(t.Context(), points[0], seal(t, points[0], 1, time.Now()))
			if err == nil || published.Confirmed != 0 || published.Asked != 5 {
				t.Errorf("%s: published %+v, %v; want 0 of 5", name, published, err)
			}
			if lied := name == "lie"; (published.Stored == 5) != lied {
				t.Errorf("%s: stored %d", name, published.Stored)
			}
		})
	}
}

// TestE10_AddressCaps: what answers name beyond the bounds, of other keys, and
// off the internet is neither kept nor dialled.
func TestE10_AddressCaps(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 3)
		points := person(t, time.Now())
		crowd, local, foreign := randomID(t), randomID(t), peer.ID("\x12\x20"+string(make([]byte, 32)))
		victims := peer.AddrInfo{ID: crowd}
		for i := range 100 {
			victims.Addrs = append(victims.Addrs, ma.StringCast("/ip4/20.200.0.1/tcp/"+string(rune('1'+i%9))+"000"))
		}
		answer := func(_ peer.ID, req *pb.Message) *pb.Message {
			resp := pb.NewMessage(req.GetType(), req.Key, 0)
			resp.CloserPeers = append(resp.CloserPeers, pbPeer(victims),
				pbPeer(peer.AddrInfo{ID: local, Addrs: []ma.Multiaddr{
					ma.StringCast("/ip4/127.0.0.1/tcp/22"), ma.StringCast("/ip4/192.168.1.1/tcp/80"),
				}}),
				pbPeer(peer.AddrInfo{ID: foreign, Addrs: victims.Addrs}))
			return resp
		}
		client := w.member(discovery.Config{Bootstrap: w.evilHosts(2, answer)})
		w.settle()
		_, _ = client.Find(t.Context(), points[:1])
		book := client.host.Peerstore()
		if got := book.Addrs(crowd); len(got) == 0 || len(got) > 8 {
			t.Errorf("%d of 100 addresses believed, want 1 to 8", len(got))
		}
		if got := book.Addrs(local); len(got) != 0 {
			t.Errorf("local addresses believed: %d", len(got))
		}
		if got := book.Addrs(foreign); len(got) != 0 {
			t.Errorf("addresses of a key that is not Ed25519 believed: %d", len(got))
		}
	})
}

// TestE11_Crawl: who asks every node for every other finds community nodes only.
// People are clients (docs/spec/discovery.md, section 1).
func TestE11_Crawl(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 8)
		var people []peer.ID
		for range 4 {
			m := w.member(discovery.Config{})
			p := person(t, time.Now())
			m.announce(t, p[:], 1)
			people = append(people, m.host.ID())
		}
		w.settle()
		crawler := w.net.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(w.next))
		seen := make(map[peer.ID]bool)
		for _, s := range w.servers {
			if err := crawler.Connect(t.Context(), nodetest.AddrInfo(t, s.host)); err != nil {
				t.Fatal(err)
			}
			for range 50 {
				resp, err := request(t.Context(), crawler, s.host.ID(), pb.NewMessage(pb.Message_FIND_NODE, []byte(randomID(t)), 0))
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range resp.CloserPeers {
					seen[peer.ID(p.Id)] = true
				}
			}
		}
		if len(seen) < len(w.servers) {
			t.Errorf("the crawler saw %d of %d nodes", len(seen), len(w.servers))
		}
		for _, id := range people {
			if seen[id] {
				t.Error("the crawler found a person's device")
			}
		}
		// A device that publishes no address is in no answer, but it has no place in
		// a table either, where it would be asked and counted.
		for i, s := range w.servers {
			if got := s.Status().Table; got >= len(w.servers) {
				t.Errorf("node %d has %d in its table, and there are %d others", i, got, len(w.servers)-1)
			}
		}
	})
}

// TestD05_Named: who asks every node for a person's device by the name of its
// transport, of look-ups or of conversations, is told of no address, although the
// nodes are connected to it.
func TestD05_Named(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 8)
		m := w.member(discovery.Config{})
		p := person(t, time.Now())
		m.announce(t, p[:], 1)
		talks := w.net.Host(t, transport.Config{Role: transport.Contacts}, nodetest.IP(w.next))
		w.next++
		w.settle()
		crawler := w.net.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(w.next))
		for _, s := range w.servers {
			for _, h := range []*transport.Host{talks, crawler} {
				if err := h.Connect(t.Context(), nodetest.AddrInfo(t, s.host)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if addrs, err := talks.ListenAddrs(); err != nil || len(addrs) == 0 {
			t.Fatalf("nothing could be told: %v", err)
		}
		for _, s := range w.servers {
			for _, id := range []peer.ID{m.host.ID(), talks.ID()} {
				resp, err := request(t.Context(), crawler, s.host.ID(), pb.NewMessage(pb.Message_FIND_NODE, []byte(id), 0))
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range resp.CloserPeers {
					if peer.ID(p.Id) == id {
						t.Errorf("a node tells of a person's device, with %d addresses", len(p.Addrs))
					}
				}
			}
		}
	})
}

// TestChurn: half of eight servers die at once; what was announced is found, and
// fast, by who has to join anew.
func TestChurn(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		n.SetLatency(20 * time.Millisecond)
		w := newWorld(t, n, 8)
		writer, reader := w.member(discovery.Config{Bootstrap: w.ways(8)}), w.member(discovery.Config{Bootstrap: w.ways(8)})
		points := person(t, time.Now())
		writer.announce(t, points[:], 1)
		reader.find(t, points[:])
		for i, s := range w.servers {
			switch {
			case i%4 == 0: // gone at once
				n.Kill(nodetest.IP(i))
				s.stop()
			case i%4 == 2: // silent
				n.Blackhole(nodetest.IP(i))
			}
		}
		if _, took := reader.find(t, points[:]); took > 2*time.Second {
			t.Errorf("found only after %v", took)
		} else {
			t.Logf("found after %v with half of the servers gone", took)
		}
		newcomer := w.member(discovery.Config{Bootstrap: w.ways(8)})
		if _, took := newcomer.find(t, points[:]); took > 4*time.Second {
			t.Errorf("a newcomer found only after %v", took)
		}
	})
}

func TestPartitionHeals(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		n.SetLatency(20 * time.Millisecond)
		w := newWorld(t, n, 8)
		writer, reader := w.member(discovery.Config{Bootstrap: w.ways(8)}), w.member(discovery.Config{Bootstrap: w.ways(8)})
		w.settle()
		var left, right []netip.Addr
		for i := range 8 {
			if i < 4 {
				left = append(left, nodetest.IP(i))
			} else {
				right = append(right, nodetest.IP(i))
			}
		}
		left, right = append(left, nodetest.IP(8)), append(right, nodetest.IP(9))
		n.Partition(left, right)
		time.Sleep(2 * time.Minute)
		points := person(t, time.Now())
		writer.announce(t, points[:], 1)
		if _, err := reader.Find(t.Context(), points[:]); !errors.Is(err, discovery.ErrNotFound) {
			t.Errorf("across the partition: %v", err)
		}
		n.Heal()
		time.Sleep(10 * time.Minute)
		reader.find(t, points[:])
	})
}

// TestReaderRepairs: what a reader found it gives back to nodes that lack it.
func TestReaderRepairs(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 3)
		writer, reader := w.member(discovery.Config{}), w.member(discovery.Config{})
		points := person(t, time.Now())
		writer.announce(t, points[:1], 1)
		for range 3 {
			w.servers = append(w.servers, w.member(discovery.Config{Server: true}))
		}
		w.settle()
		for range 3 {
			reader.find(t, points[:1])
			w.settle()
		}
		if i := slices.IndexFunc(w.servers, func(s *member) bool { return s.Status().Records == 0 }); i >= 0 {
			t.Errorf("server %d still lacks the record", i)
		}
	})
}

// TestNoWayIn: without a way in the error says so, in bounded time, and a way
// in that comes later is used at once.
func TestNoWayIn(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 2)
		lost := w.member(discovery.Config{Bootstrap: []peer.AddrInfo{}})
		points := person(t, time.Now())
		start := time.Now()
		if _, err := lost.Find(t.Context(), points[:]); !errors.Is(err, discovery.ErrNoPeers) {
			t.Errorf("find: %v", err)
		}
		if published, err := lost.Announce(t.Context(), points[0], seal(t, points[0], 1, time.Now())); !errors.Is(err, discovery.ErrNoPeers) || published.Asked != 0 {
			t.Errorf("announce: %+v, %v", published, err)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("both took %v", took)
		}
		lost.AddWaysIn(w.ways(1))
		lost.announce(t, points[:], 1)
		time.Sleep(10 * time.Second)
		if s := lost.Status(); s.Table == 0 || s.Peers == 0 {
			t.Errorf("status %+v", s)
		}
	})
}

// TestE03_Remembered: a node that ran before comes back through those it
// remembers, whatever the bootstrap list has become, and strangers don't take
// their places.
// This is docs/spec/discovery.md, section 8.
func TestE03_Remembered(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 8)
		var kept []peer.AddrInfo
		remember := func(infos []peer.AddrInfo) { kept = infos }
		first := w.member(discovery.Config{Remember: remember})
		time.Sleep(11 * time.Minute)
		first.stop()
		if len(kept) != 8 {
			t.Fatalf("%d nodes remembered, want 8", len(kept))
		}
		liars := w.evilHosts(12, func(_ peer.ID, req *pb.Message) *pb.Message {
			return pb.NewMessage(req.GetType(), req.Key, 0)
		})
		again := w.member(discovery.Config{Bootstrap: liars, Remembered: kept, Remember: remember})
		points := person(t, time.Now())
		writer := w.member(discovery.Config{})
		writer.announce(t, points[:], 1)
		again.find(t, points[:])
		time.Sleep(11 * time.Minute)
		honest := w.ways(8)
		for i, info := range kept[:8] {
			if !slices.ContainsFunc(honest, func(h peer.AddrInfo) bool { return h.ID == info.ID }) {
				t.Errorf("place %d was taken by a stranger", i)
			}
		}
	})
}

// TestE03_OneHonestWayIn: nine of the ten ways in that a new node was given are
// liars, who name one another and people nobody has ever met. It finds what is
// announced among honest nodes, by the one way that is honest.
func TestE03_OneHonestWayIn(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		n.SetLatency(20 * time.Millisecond)
		w := newWorld(t, n, 8)
		writer := w.member(discovery.Config{})
		points := person(t, time.Now())
		writer.announce(t, points[:], 1)
		liars := w.liars(9)
		for range 5 { // whom it dials first is chance
			newcomer := w.member(discovery.Config{Bootstrap: append(w.ways(1), liars...)})
			w.settle()
			if _, err := newcomer.Find(t.Context(), points[:]); err != nil {
				t.Errorf("with one honest way in of ten: %v", err)
			}
			if err := announceOne(t, newcomer, writer); err != nil {
				t.Errorf("with one honest way in of ten: %v", err)
			}
			newcomer.stop()
		}
	})
}

// liars are servers who know one another and name nobody else but people nobody
// has ever met. They store nothing and say that they do.
func (w *world) liars(count int) []peer.AddrInfo {
	var all atomic.Pointer[[]peer.AddrInfo]
	alone := &world{t: w.t, net: w.net, next: w.next}
	infos := alone.evilHosts(count, func(_ peer.ID, req *pb.Message) *pb.Message {
		if req.GetType() == pb.Message_PUT_VALUE {
			return req
		}
		resp := pb.NewMessage(req.GetType(), req.Key, 0)
		if known := all.Load(); known != nil {
			for _, info := range *known {
				resp.CloserPeers = append(resp.CloserPeers, pbPeer(info))
			}
		}
		for range 10 {
			resp.CloserPeers = append(resp.CloserPeers, pbPeer(peer.AddrInfo{
				ID: randomID(w.t), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/20.250.0.1/tcp/4001")},
			}))
		}
		return resp
	})
	w.next = alone.next
	all.Store(&infos)
	return infos
}

// announceOne has one announce at new points, and another find it.
func announceOne(t *testing.T, from, reader *member) error {
	points := person(t, time.Now())
	from.announce(t, points[:], 1)
	_, err := reader.Find(t.Context(), points[:])
	return err
}
