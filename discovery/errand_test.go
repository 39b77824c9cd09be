package discovery_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol/errand"
)

// carried makes a device that has everything done by servers.
func (w *world) carried(servers ...*member) *member {
	m := w.member(discovery.Config{Bootstrap: []peer.AddrInfo{}})
	m.SetErrands(true, w.infos(servers))
	return m
}

func (w *world) infos(servers []*member) (infos []peer.AddrInfo) {
	for _, s := range servers {
		infos = append(infos, nodetest.AddrInfo(w.t, s.host))
	}
	return infos
}

// TestErrands: two devices that dial one community node each find each other, and
// those who look into the table themselves.
func TestErrands(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 12)
		alice, bob, carol := w.carried(w.servers[3]), w.carried(w.servers[7]), w.member(discovery.Config{})
		points := person(t, time.Now())
		for _, p := range alice.announce(t, points[:], 1) {
			if p.Confirmed < 10 {
				t.Errorf("published %+v", p)
			}
		}
		for name, m := range map[string]*member{"by errand": bob, "by herself": carol} {
			if found, took := m.find(t, points[:]); found.Seq != 1 || took > 2*time.Second {
				t.Errorf("%s: %+v after %v", name, found, took)
			}
		}
		other := person(t, time.Now())
		if _, err := bob.Find(t.Context(), other[:]); !errors.Is(err, discovery.ErrNotFound) {
			t.Errorf("what nobody announced: %v", err)
		}
		for _, m := range []*member{alice, bob} {
			if peers := m.host.Network().Peers(); len(peers) != 1 {
				t.Errorf("connected to %d peers", len(peers))
			}
			if s := m.Status(); s.Mode != discovery.Errand || s.Peers != 1 {
				t.Errorf("status %+v", s)
			}
		}
		// Back in an open network, the table is asked again.
		bob.SetErrands(false, nil)
		bob.AddWaysIn(w.ways(2))
		w.settle()
		bob.announce(t, points[:], 2)
		if found, _ := alice.find(t, points[:]); found.Seq != 2 {
			t.Errorf("found %+v", found)
		}
	})
}

// TestErrandsBegin: who waits for a table that nobody leads to goes on by errand as
// soon as there are nodes that do them.
func TestErrandsBegin(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 2)
		points := person(t, time.Now())
		w.carried(w.servers[1]).announce(t, points[:], 1)
		n.Blackhole(nodetest.IP(0))
		newcomer := w.member(discovery.Config{Bootstrap: w.infos(w.servers[:1])})
		time.AfterFunc(time.Second, func() { newcomer.SetErrands(true, w.infos(w.servers[1:])) })
		if found, took := newcomer.find(t, points[:]); found.Seq != 1 || took > 4*time.Second {
			t.Errorf("found %+v after %v", found, took)
		}
	})
}

// TestErrandsOfOneNode: a bridge that knows no other community node keeps
// records itself.
func TestErrandsOfOneNode(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 1)
		alice, bob := w.carried(w.servers[0]), w.carried(w.servers[0])
		points := person(t, time.Now())
		alice.announce(t, points[:], 1)
		if found, took := bob.find(t, points[:]); found.Seq != 1 || took > time.Second {
			t.Errorf("found %+v after %v", found, took)
		}
	})
}

// TestErrandsRace: a node that vanished, and one that hides what it knows, cost
// moments where another is known.
func TestErrandsRace(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 4)
		points := person(t, time.Now())
		w.carried(w.servers[1]).announce(t, points[:], 1)

		bob := w.carried(w.servers[0], w.servers[1])
		bob.find(t, points[:])
		n.Blackhole(nodetest.IP(0))
		if found, took := bob.find(t, points[:]); found.Seq != 1 || took > 5*time.Second {
			t.Errorf("one node is blocked: %+v after %v", found, took)
		}
		n.Heal()

		w.servers[2].host.SetStreamHandler(libp2p.ID(errand.Protocol), func(s network.Stream) {
			_, _ = s.Write(errand.AppendFrame(nil, &errand.Records{}))
			_ = s.Close()
		})
		carol := w.carried(w.servers[2], w.servers[3])
		if found, took := carol.find(t, points[:]); found.Seq != 1 || took > 3*time.Second {
			t.Errorf("one node hides: %+v after %v", found, took)
		}
		for _, gone := range w.servers {
			gone.stop()
			gone.host.Close()
		}
		if _, err := carol.Find(t.Context(), points[:]); !errors.Is(err, discovery.ErrNoPeers) {
			t.Errorf("all nodes are gone: %v", err)
		}
		if _, err := carol.Announce(t.Context(), points[0], seal(t, points[0], 2, time.Now())); !errors.Is(err, discovery.ErrNoPeers) {
			t.Errorf("all nodes are gone: %v", err)
		}
	})
}

// TestErrandsNewest follows docs/spec/errand.md, section 4: of the keys that are asked
// for together the answer has the newest record alone.
func TestErrandsNewest(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 3)
		points := person(t, time.Now())
		announcer := w.carried(w.servers[1])
		request := &errand.Find{}
		for i, seq := range []uint64{4, 6, 5} {
			announcer.announce(t, points[i:i+1], seq)
			request.Keys = append(request.Keys, points[i].Key())
		}
		a := w.asker(w.carried(), w.servers[0])
		answer, err := a.ask(request)
		records, ok := answer.(*errand.Records)
		if err != nil || !ok || len(records.Records) != 1 || records.Records[0].Index != 1 {
			t.Fatalf("answer %+v, %v", answer, err)
		}
		if _, seq, err := points[1].Open(records.Records[0].Value, time.Now()); err != nil || seq != 6 {
			t.Errorf("it opens to record %d, %v", seq, err)
		}
		request.Keys = []errand.Key{person(t, time.Now())[0].Key()}
		if answer, err := a.ask(request); err != nil || len(answer.(*errand.Records).Records) != 0 {
			t.Errorf("what nobody announced: %+v, %v", answer, err)
		}
	})
}

// TestErrandsPatience: where a connection alone takes most of the time that a node
// has for itself, it gets as long again for the answer, and no other is asked.
func TestErrandsPatience(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 2)
		points := person(t, time.Now())
		w.carried(w.servers[0]).announce(t, points[:], 1)
		bob := w.carried()
		n.SetLatency(150 * time.Millisecond)
		bob.SetErrands(true, w.infos(w.servers))
		found, took := bob.find(t, points[:])
		if found.Seq != 1 || took < 2*time.Second {
			t.Fatalf("found %+v after %v: this line is not slow", found, took)
		}
		if got := len(bob.host.Network().Peers()); got != 1 {
			t.Errorf("connected to %d nodes after %v, want 1", got, took)
		}
	})
}

// TestErrandsForged: what a node brings is believed no more than the table.
func TestErrandsForged(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 2)
		points, other := person(t, time.Now()), person(t, time.Now())
		good := seal(t, points[0], 5, time.Now())
		for name, answer := range map[string]errand.Frame{
			"another's record":  &errand.Records{Records: []errand.Record{{Index: 0, Value: seal(t, other[0], 9, time.Now())}}},
			"another point's":   &errand.Records{Records: []errand.Record{{Index: 1, Value: good}}},
			"an expired record": &errand.Records{Records: []errand.Record{{Index: 0, Value: seal(t, points[0], 9, time.Now().Add(-25*time.Hour))}}},
			"noise":             &errand.Records{Records: []errand.Record{{Index: 0, Value: make([]byte, 4096)}}},
			"the wrong frame":   &errand.Kept{Asked: 1, Stored: 1, Confirmed: 1},
		} {
			w.servers[0].host.SetStreamHandler(libp2p.ID(errand.Protocol), func(s network.Stream) {
				_, _ = s.Write(errand.AppendFrame(nil, answer))
				_ = s.Close()
			})
			if found, err := w.carried(w.servers[0]).Find(t.Context(), points[:1]); err == nil {
				t.Errorf("%s: %+v", name, found)
			}
		}
		// An older record than the one already found is as good as none (threats E04).
		m := w.carried(w.servers[1])
		m.announce(t, points[:1], 5)
		m.find(t, points[:1])
		m.SetErrands(true, w.infos(w.servers[:1]))
		w.servers[0].host.SetStreamHandler(libp2p.ID(errand.Protocol), func(s network.Stream) {
			_, _ = s.Write(errand.AppendFrame(nil, &errand.Records{Records: []errand.Record{{Value: seal(t, points[0], 4, time.Now())}}}))
			_ = s.Close()
		})
		if found, err := m.Find(t.Context(), points[:1]); !errors.Is(err, discovery.ErrNotFound) {
			t.Errorf("an older record: %+v, %v", found, err)
		}
	})
}

// asker is a stream on which a test asks what an honest device would not.
type asker struct {
	t  *testing.T
	s  network.Stream
	in *bufio.Reader
}

func (w *world) asker(from, to *member) *asker {
	w.t.Helper()
	if err := from.host.Connect(w.t.Context(), nodetest.AddrInfo(w.t, to.host)); err != nil {
		w.t.Fatal(err)
	}
	s, err := from.host.NewStream(w.t.Context(), to.host.ID(), libp2p.ID(errand.Protocol))
	if err != nil {
		w.t.Fatal(err)
	}
	return &asker{w.t, s, bufio.NewReader(s)}
}

func (a *asker) ask(f errand.Frame) (errand.Frame, error) {
	if _, err := a.s.Write(errand.AppendFrame(nil, f)); err != nil {
		return nil, err
	}
	return errand.ReadAnswer(a.in)
}

// TestErrandRefused follows docs/spec/errand.md, section 4.
func TestErrandRefused(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 2)
		a := w.asker(w.carried(), w.servers[0])
		points, other := person(t, time.Now()), person(t, time.Now())
		for name, f := range map[string]errand.Frame{
			"a record under another key": &errand.Announce{Key: points[0].Key(), Record: seal(t, other[0], 1, time.Now())},
			"an expired record":          &errand.Announce{Key: points[0].Key(), Record: seal(t, points[0], 1, time.Now().Add(-25*time.Hour))},
			"mail, where none is taken":  &errand.Carry{Address: []byte{1}, Mail: []byte{1}},
		} {
			answer, err := a.ask(f)
			if r, ok := answer.(*errand.Refused); !ok || r.Why != errand.RefusedInvalid {
				t.Errorf("%s: %+v, %v", name, answer, err)
			}
		}
		if s := w.servers[0].Status(); s.Records != 0 {
			t.Errorf("the node keeps %d records", s.Records)
		}
		// What the rules do not allow ends the stream.
		if _, err := a.s.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		if f, err := errand.ReadAnswer(a.in); err == nil {
			t.Errorf("an answer to a broken frame: %+v", f)
		}
	})
}

// TestErrandsCarried: mail is carried in its order and as much as one stream takes,
// and a request that is refused is the last of them.
func TestErrandsCarried(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 1)
		var at atomic.Int64
		server := w.member(discovery.Config{Server: true, Carry: func(_ context.Context, address, mail []byte) ([]byte, error) {
			at.Add(1)
			if string(mail) == "broken" {
				return nil, discovery.ErrNotCarried
			}
			return append(address, mail[:8]...), nil
		}})
		device := w.carried()
		to := nodetest.AddrInfo(t, server.host)
		var mails [][]byte
		for i := range 64 {
			mails = append(mails, bytes.Repeat([]byte{byte(i)}, 1<<14))
		}
		carry := func() ([][]byte, error) {
			backs, err := discovery.CarryMail(t.Context(), device.host, to, []byte("to"), mails)
			for i, back := range backs {
				if want := append([]byte("to"), mails[i][:8]...); !bytes.Equal(back, want) {
					t.Errorf("answer %d is %.20q", i, back)
				}
			}
			return backs, err
		}
		if backs, err := carry(); len(backs) != len(mails) || err != nil {
			t.Errorf("%d of %d were carried: %v", len(backs), len(mails), err)
		}
		at.Store(0)
		mails[10] = []byte("broken")
		if backs, err := carry(); len(backs) != 10 || err == nil {
			t.Errorf("%d were carried before the one that is not: %v", len(backs), err)
		}
		server.host.Close()
		if backs, err := carry(); len(backs) != 0 || err == nil {
			t.Errorf("%d were carried by a node that is gone", len(backs))
		}
	})
}

// TestErrandLimits follows docs/spec/errand.md, section 5: a node does only so
// much for one peer, and so is no amplifier.
func TestErrandLimits(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 3)
		greedy, modest := w.carried(), w.carried()
		var asked atomic.Int64
		n.Tap(func(from, to netip.Addr) func([]byte) []byte {
			return func(b []byte) []byte {
				if from == nodetest.IP(0) && to != nodetest.IP(3) && to != nodetest.IP(4) {
					asked.Add(1)
				}
				return b
			}
		})
		a := w.asker(greedy, w.servers[0])
		var keys []errand.Key
		for _, p := range person(t, time.Now()) {
			keys = append(keys, p.Key())
		}
		met := 0
		var refused *errand.Refused
		for ; met < 1000 && refused == nil; met++ {
			answer, err := a.ask(&errand.Find{Keys: keys})
			if err != nil {
				t.Fatal(err)
			}
			refused, _ = answer.(*errand.Refused)
		}
		if refused == nil || refused.Why != errand.RefusedLimit || refused.After <= 0 || met < 80 || met > 120 {
			t.Fatalf("after %d finds: %+v", met, refused)
		}
		before := asked.Load()
		for range 1000 {
			if _, err := a.ask(&errand.Find{Keys: keys}); err != nil {
				t.Fatal(err)
			}
		}
		if more := asked.Load() - before; more > 20 {
			t.Errorf("a thousand refused requests made the node ask %d times", more)
		}
		// It costs nobody else anything, and ends.
		if answer, err := w.asker(modest, w.servers[0]).ask(&errand.Find{Keys: keys}); err != nil {
			t.Error(err)
		} else if _, ok := answer.(*errand.Records); !ok {
			t.Errorf("another peer: %+v", answer)
		}
		time.Sleep(refused.After + time.Second)
		a = w.asker(greedy, w.servers[0])
		if answer, err := a.ask(&errand.Find{Keys: keys[:1]}); err != nil {
			t.Error(err)
		} else if _, ok := answer.(*errand.Records); !ok {
			t.Errorf("after the pause: %+v", answer)
		}
		// More streams at one time than are allowed are reset.
		open := 0
		for range 20 {
			s := w.asker(greedy, w.servers[0])
			if _, err := s.ask(&errand.Find{Keys: keys[:1]}); err == nil {
				open++
			}
		}
		if open >= 20 || open < 4 {
			t.Errorf("%d streams of one peer at one time", open)
		}
	})
}

// TestF01_ErrandMemory: what an errand takes is the resource manager's to give,
// before anything of it is read, and given back when the stream ends.
func TestF01_ErrandMemory(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		w := newWorld(t, n, 2)
		server := w.servers[0].host
		id := libp2p.ID(errand.Protocol)
		protocol := func(do func(network.ProtocolScope) error) {
			t.Helper()
			if err := server.Network().ResourceManager().ViewProtocol(id, do); err != nil {
				t.Fatal(err)
			}
		}
		held := func() (bytes int64) {
			protocol(func(s network.ProtocolScope) error { bytes = s.Stat().Memory; return nil })
			return bytes
		}
		find := &errand.Find{Keys: []errand.Key{person(t, time.Now())[0].Key()}}
		a := w.asker(w.carried(), w.servers[0])
		if _, err := a.ask(find); err != nil {
			t.Fatal(err)
		}
		if got := held(); got < errand.MaxRequest {
			t.Errorf("a stream holds %d bytes, and its request may have %d", got, errand.MaxRequest)
		}
		_ = a.s.Reset()
		time.Sleep(time.Second)
		if got := held(); got != 0 {
			t.Errorf("a stream that ended holds %d bytes", got)
		}
		var rest network.ResourceScopeSpan
		protocol(func(s network.ProtocolScope) (err error) {
			if rest, err = s.BeginSpan(); err != nil {
				return err
			}
			return rest.ReserveMemory(transport.CommunityMemory/2-errand.MaxRequest, network.ReservationPriorityAlways)
		})
		if f, err := w.asker(w.carried(), w.servers[0]).ask(find); err == nil {
			t.Errorf("answered without memory: %+v", f)
		}
		rest.Done()
		if _, err := w.asker(w.carried(), w.servers[0]).ask(find); err != nil {
			t.Errorf("with memory again: %v", err)
		}
	})
}

// TestD06_NoBridgeInTheTable: whatever a community node knows of bridges, no
// answer of the table holds it. The bytes are looked at.
func TestD06_NoBridgeInTheTable(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		const secret = "AAECAwQFBgcICQoLDA0ODw"
		w := newWorld(t, n, 6)
		for _, s := range w.servers {
			for i, other := range w.servers {
				veil := ma.StringCast("/ip4/" + nodetest.IP(i).String() + "/tcp/443/tls/sni/example.com/http-path/" + secret)
				s.host.Peerstore().AddAddrs(other.host.ID(), []ma.Multiaddr{veil}, time.Hour)
			}
		}
		var leaks, written atomic.Int64
		n.Tap(func(_, _ netip.Addr) func([]byte) []byte {
			return func(b []byte) []byte {
				written.Add(1)
				if bytes.Contains(b, []byte(secret)) || bytes.Contains(b, []byte("example.com")) {
					leaks.Add(1)
				}
				return b
			}
		})
		alice, bob := w.member(discovery.Config{}), w.carried(w.servers[2])
		w.settle()
		points := person(t, time.Now())
		alice.announce(t, points[:], 1)
		bob.find(t, points[:])
		if leaks.Load() > 0 || written.Load() < 100 {
			t.Errorf("%d of %d writes hold a bridge's address", leaks.Load(), written.Load())
		}
		var kept [][]byte
		late := w.member(discovery.Config{Remember: func(infos []peer.AddrInfo) {
			for _, info := range infos {
				for _, a := range info.Addrs {
					kept = append(kept, a.Bytes())
				}
			}
		}})
		for _, s := range w.servers {
			late.host.Peerstore().AddAddrs(s.host.ID(), []ma.Multiaddr{
				ma.StringCast("/dns4/example.com/tcp/443/tls/http-path/" + secret),
			}, time.Hour)
		}
		w.settle()
		late.stop()
		if len(kept) == 0 || bytes.Contains(bytes.Join(kept, nil), []byte(secret)) {
			t.Errorf("remembered %d addresses, or a bridge's among them", len(kept))
		}
	})
}
