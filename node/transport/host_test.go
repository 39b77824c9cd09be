package transport_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/goleak"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

const (
	tcpLoopback  = "/ip4/127.0.0.1/tcp/0"
	quicLoopback = "/ip4/127.0.0.1/udp/0/quic-v1"
)

// realHost makes a host on real loopback sockets.
func realHost(t testing.TB, role transport.Role, listen ...string) *transport.Host {
	t.Helper()
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg := transport.Config{Key: key, Role: role, Memory: transport.MinMemory, Dial: transport.Loopback}
	for _, a := range listen {
		cfg.Listen = append(cfg.Listen, ma.StringCast(a))
	}
	h, err := transport.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestConfigRefused(t *testing.T) {
	good, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecdsa, _, err := crypto.GenerateECDSAKeyPair(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	listen := []ma.Multiaddr{ma.StringCast(tcpLoopback)}
	for name, cfg := range map[string]transport.Config{
		"no key":            {Role: transport.Contacts, Memory: transport.MinMemory},
		"other key":         {Key: ecdsa, Role: transport.Contacts, Memory: transport.MinMemory},
		"no role":           {Key: good, Memory: transport.MinMemory},
		"unknown role":      {Key: good, Role: 9, Memory: transport.MinMemory},
		"errands listening": {Key: good, Role: transport.Errands, Memory: transport.MinMemory, Listen: listen},
		"no memory":         {Key: good, Role: transport.Contacts},
	} {
		if h, err := transport.New(cfg); err == nil {
			h.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestListenFails shows that an address that can't be had is an error that says
// why and leaves nothing open.
func TestListenFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for _, test := range []struct {
		addr   string
		reason transport.ListenReason
	}{
		{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port), transport.ListenInUse},
		{fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", u.LocalAddr().(*net.UDPAddr).Port), transport.ListenInUse},
		{"/ip4/192.0.2.1/tcp/0", transport.ListenNotHere}, // RFC 5737: nobody's
		{"/ip4/192.0.2.1/udp/0/quic-v1", transport.ListenNotHere},
		{"/ip4/127.0.0.1/tcp/0/ws", transport.ListenUnsupported},
		{"/ip4/127.0.0.1/udp/0", transport.ListenUnsupported},
		{"/ip4/127.0.0.1", transport.ListenUnsupported},
	} {
		before := goleak.IgnoreCurrent()
		key, _ := transport.NewKey(rand.Reader)
		_, err := transport.New(transport.Config{
			Key: key, Role: transport.Contacts, Memory: transport.MinMemory,
			Listen: []ma.Multiaddr{ma.StringCast(quicLoopback), ma.StringCast(test.addr)},
		})
		var failed *transport.ListenError
		if !errors.As(err, &failed) || failed.Reason != test.reason || failed.Addr.String() != test.addr {
			t.Errorf("listening on %s: %v, want a ListenError with reason %d", test.addr, err, test.reason)
		}
		if err := goleak.Find(before); err != nil {
			t.Errorf("%s: %v", test.addr, err)
		}
	}
}

// TestX07_StrangerLearnsNothing probes a user's host as any crawler does.
func TestX07_StrangerLearnsNothing(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		const secret = "/9a53c0ffee"
		h := n.Host(t, transport.Config{Role: transport.Contacts}, nodetest.IP(0))
		served := make(chan protocol.ID, 1)
		h.HandleSecret(func(name protocol.ID) bool { return name == secret }, func(s network.Stream) {
			served <- s.Protocol()
			s.Close()
		})
		stranger := n.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(1))
		at := nodetest.AddrInfo(t, h)
		if err := stranger.Connect(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		s, err := stranger.NewStream(t.Context(), h.ID(), identify.ID)
		if err != nil {
			t.Fatal(err)
		}
		told, err := io.ReadAll(s)
		if err != nil || len(told) == 0 {
			t.Fatal(told, err)
		}
		ip := nodetest.IP(0).As4()
		for what, b := range map[string][]byte{"our name": []byte("kith"), "a secret name": []byte(secret), "its address": ip[:]} {
			if bytes.Contains(told, b) {
				t.Errorf("identify shows %s: %q", what, told)
			}
		}
		names, err := stranger.Peerstore().GetProtocols(h.ID())
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		// What libp2p hosts list that can be relayed; none of it is ours.
		if want := []protocol.ID{
			identify.ID, identify.IDPush, ping.ID, autonatv2.DialBackProtocol, proto.ProtoIDv2Stop, holepunch.Protocol,
		}; !slices.Equal(names, want) {
			t.Errorf("identify lists %q, want %q", names, want)
		}
		if len(h.Addrs()) != 0 {
			t.Errorf("the host publishes %v", h.Addrs())
		}

		// A guess gets what every unknown name gets; the name is served; ping goes on.
		if _, err := stranger.NewStream(t.Context(), h.ID(), "/guess"); err == nil {
			t.Error("a guess was served")
		}
		if s, err = stranger.NewStream(t.Context(), h.ID(), secret); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		if got := <-served; got != secret {
			t.Errorf("served as %q", got)
		}
		if err := pingOnce(t, stranger, h.ID()); err != nil {
			t.Errorf("ping: %v", err)
		}
	})
}

// TestCommunityPublishes is the other side of the above: a community node's
// addresses have to travel through the DHT.
func TestCommunityPublishes(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		h := n.Host(t, transport.Config{Role: transport.Community}, nodetest.IP(0))
		if len(h.Addrs()) != 1 {
			t.Errorf("a community node publishes %v", h.Addrs())
		}
	})
}

// TestRealTransports talks over TCP and QUIC on real sockets.
func TestRealTransports(t *testing.T) {
	for _, listen := range []string{tcpLoopback, quicLoopback} {
		server, client := realHost(t, transport.Contacts, listen), realHost(t, transport.Errands)
		if err := client.Connect(t.Context(), nodetest.AddrInfo(t, server)); err != nil {
			t.Fatalf("%s: %v", listen, err)
		}
		if err := pingOnce(t, client, server.ID()); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
		state := client.Network().ConnsToPeer(server.ID())[0].ConnState()
		if listen == tcpLoopback && state.Security != libp2ptls.ID {
			t.Errorf("TCP is secured with %q", state.Security)
		}
	}
}

func TestE10_LoopbackNotDialled(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var seen atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			seen.Add(1)
			c.Close()
		}
	}()
	key, _ := transport.NewKey(rand.Reader)
	h, err := transport.New(transport.Config{Key: key, Role: transport.Errands, Memory: transport.MinMemory, Dial: transport.Public})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	victim, _ := manet.FromNetAddr(l.Addr())
	other, _ := transport.NewKey(rand.Reader)
	id, _ := peer.IDFromPrivateKey(other)
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{victim}}); !errors.Is(err, swarm.ErrGaterDisallowedConnection) {
		t.Errorf("dialling loopback: %v", err)
	}
	if seen.Load() != 0 {
		t.Error("the victim saw a connection")
	}
}

// TestF01_StreamsPerPeer opens streams until the host refuses.
func TestF01_StreamsPerPeer(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		h := n.Host(t, transport.Config{Memory: transport.UserMemory}, nodetest.IP(0))
		var open, most atomic.Int32
		hold := func(s network.Stream) {
			now := open.Add(1)
			for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
			}
			io.Copy(io.Discard, s)
			open.Add(-1)
			s.Reset()
		}
		h.SetStreamHandler("/one", hold)
		h.SetStreamHandler("/two", hold)
		h.SetStreamHandler("/three", hold)
		attacker := n.Host(t, transport.Config{Role: transport.Errands, Memory: transport.CommunityMemory}, nodetest.IP(1))
		if err := attacker.Connect(t.Context(), nodetest.AddrInfo(t, h)); err != nil {
			t.Fatal(err)
		}
		flood := func(name protocol.ID) {
			c := attacker.Network().ConnsToPeer(h.ID())[0]
			for range 60 { // below what the attacker's own limits allow
				s, err := c.NewStream(t.Context())
				if err != nil {
					continue
				}
				var hello []byte
				for _, line := range []string{"/multistream/1.0.0\n", string(name) + "\n"} {
					hello = append(binary.AppendUvarint(hello, uint64(len(line))), line...)
				}
				s.Write(hello)
			}
			time.Sleep(time.Second)
		}
		flood("/one")
		if got := most.Load(); got == 0 || got > 32 {
			t.Errorf("one peer has %d streams of one protocol, limit 32", got)
		}
		for _, c := range attacker.Network().Conns() {
			c.Close()
		}
		time.Sleep(time.Minute)
		if got := open.Load(); got != 0 {
			t.Errorf("%d streams outlived their connection", got)
		}
	})
}

// TestF01_ConnectionsPerAddress connects under many identities from one
// address, then from many.
func TestF01_ConnectionsPerAddress(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		h := n.Host(t, transport.Config{}, nodetest.IP(0))
		flood := func(count int, from func(i int) netip.Addr) (in int) {
			for i := range count {
				a := n.Host(t, transport.Config{Role: transport.Errands}, from(i))
				if err := a.Connect(t.Context(), nodetest.AddrInfo(t, h)); err == nil {
					defer a.Close()
				} else {
					a.Close()
				}
			}
			return len(h.Network().Conns())
		}
		// 16 MiB are 64 connections: 24 for one address, 48 for all who come to us.
		if got := flood(30, func(int) netip.Addr { return nodetest.IP(1) }); got != 24 {
			t.Errorf("one address holds %d connections, want 24", got)
		}
		time.Sleep(time.Minute)
		if got := flood(60, func(i int) netip.Addr { return nodetest.IP(2 + i) }); got < 32 || got > 48 {
			t.Errorf("strangers hold %d connections, want 32 to 48", got)
		}
	})
}

// TestG01_PlacesForNewcomers: those who take all the places they can get, from
// ten parts of the network, neither keep anybody else out nor drive anybody away.
func TestG01_PlacesForNewcomers(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		h := n.Host(t, transport.Config{}, nodetest.IP(0)) // 32 places
		at := nodetest.AddrInfo(t, h)
		come := func(ip netip.Addr) *transport.Host {
			a := n.Host(t, transport.Config{Role: transport.Errands}, ip)
			if err := a.Connect(t.Context(), at); err != nil {
				t.Fatalf("no place for %v: %v", ip, err)
			}
			return a
		}
		flood := func(round byte) {
			for i := range byte(60) {
				come(netip.AddrFrom4([4]byte{45, i % 10, round, i}))
				time.Sleep(100 * time.Millisecond)
			}
		}
		owner := come(netip.MustParseAddr("46.1.1.1"))
		neighbour := come(netip.MustParseAddr("45.5.200.1")) // there before the flood
		time.Sleep(3 * time.Second)
		flood(1)
		contact := come(netip.MustParseAddr("47.1.1.1"))
		flood(2)
		for name, a := range map[string]*transport.Host{"the owner": owner, "the neighbour of those who flood": neighbour, "the contact": contact} {
			if len(a.Network().Conns()) != 1 {
				t.Errorf("%s was shown out", name)
			}
		}
		if got := len(h.Network().Conns()); got != 32 {
			t.Errorf("%d connections stay, want 32", got)
		}
	})
}

// TestF01_LoopbackIsLimited: libp2p's defaults exempt loopback, where proxies
// and other users of the machine connect from. QUIC is counted like TCP.
func TestF01_LoopbackIsLimited(t *testing.T) {
	for _, listen := range []string{tcpLoopback, quicLoopback} {
		h := realHost(t, transport.Contacts, listen)
		at := nodetest.AddrInfo(t, h)
		for range 40 {
			a := realHost(t, transport.Errands)
			_ = a.Connect(t.Context(), at) // refused beyond the limit
		}
		if got := len(h.Network().Conns()); got == 0 || got > 32 {
			t.Errorf("%s: loopback holds %d connections, limit 32", listen, got)
		}
	}
}

// TestF01_SilentConnections opens TCP connections that never speak: only so
// many wait, and they are cut.
func TestF01_SilentConnections(t *testing.T) {
	h := realHost(t, transport.Contacts, tcpLoopback)
	addr, err := manet.ToNetAddr(nodetest.AddrInfo(t, h).Addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	const attempts = 100
	kept := make(chan bool, attempts)
	for range attempts {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			_, err := io.Copy(io.Discard, c)
			var timeout net.Error
			kept <- errors.As(err, &timeout) && timeout.Timeout()
		}()
	}
	var waiting int
	for range attempts {
		if <-kept {
			waiting++
		}
	}
	if waiting == 0 || waiting > 16 {
		t.Errorf("%d silent connections wait, limit 16", waiting)
	}
}

// TestF02_RSAPeerRefused connects with a real handshake under an RSA key.
func TestF02_RSAPeerRefused(t *testing.T) {
	h := realHost(t, transport.Contacts, tcpLoopback)
	for _, kind := range []int{crypto.RSA, crypto.ECDSA, crypto.Secp256k1, crypto.Ed25519} {
		key, _, err := crypto.GenerateKeyPairWithReader(kind, 2048, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		sw := bareSwarm(t, key)
		sw.Peerstore().AddAddrs(h.ID(), h.Network().ListenAddresses(), time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		c, err := sw.DialPeer(ctx, h.ID())
		if err == nil { // with TLS 1.3 the client is done before it is refused
			var s network.Stream
			if s, err = c.NewStream(ctx); err == nil {
				s.SetDeadline(time.Now().Add(3 * time.Second))
				s.Write([]byte("\x13/multistream/1.0.0\n"))
				_, err = io.ReadFull(s, make([]byte, 20))
			}
		}
		cancel()
		if accepted := err == nil; accepted != (kind == crypto.Ed25519) {
			t.Errorf("key type %d: %v", kind, err)
		}
	}
}

// bareSwarm is a peer that kith didn't build, with any key and no limits.
func bareSwarm(t *testing.T, key crypto.PrivKey) *swarm.Swarm {
	t.Helper()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		t.Fatal(err)
	}
	store.AddPrivKey(id, key)
	store.AddPubKey(id, key.GetPublic())
	sw, err := swarm.NewSwarm(id, store, eventbus.NewBus())
	if err != nil {
		t.Fatal(err)
	}
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}}
	security, err := libp2ptls.New(libp2ptls.ID, key, muxers)
	if err != nil {
		t.Fatal(err)
	}
	up, err := upgrader.New([]sec.SecureTransport{security}, muxers, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := tcp.NewTCPTransport(up, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sw.AddTransport(tr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sw.Close()
		store.Close()
	})
	return sw
}

// TestF05_Slowloris: every way of being slow ends in time.
func TestF05_Slowloris(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(s network.Stream)
		want time.Duration
	}{
		{"silent", func(network.Stream) { time.Sleep(time.Hour) }, transport.FirstByteTimeout},
		{"trickling", func(s network.Stream) {
			for {
				if _, err := s.Write([]byte{'x'}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, transport.FrameTimeout},
		{"idle after a frame", func(s network.Stream) {
			s.Write([]byte("a whole frame\n"))
			time.Sleep(time.Hour)
		}, transport.IdleTimeout},
		{"a second frame begun with the first", func(s network.Stream) {
			s.Write([]byte("a whole frame\nand a part"))
			time.Sleep(time.Hour)
		}, transport.FrameTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
				const streams = 10
				ended := make(chan time.Duration, streams)
				h := n.Host(t, transport.Config{Memory: transport.UserMemory}, nodetest.IP(0))
				h.SetStreamHandler("/lines", func(s network.Stream) {
					start := time.Now()
					r := transport.NewReader(s)
					for {
						r.Begin()
						if _, err := r.ReadString('\n'); err != nil {
							s.Reset()
							ended <- time.Since(start)
							return
						}
					}
				})
				slow := n.Host(t, transport.Config{Role: transport.Errands, Memory: transport.UserMemory}, nodetest.IP(1))
				if err := slow.Connect(t.Context(), nodetest.AddrInfo(t, h)); err != nil {
					t.Fatal(err)
				}
				for range streams {
					s, err := slow.NewStream(t.Context(), h.ID(), "/lines")
					if err != nil {
						t.Fatal(err)
					}
					s.Write(nil) // completes the lazy negotiation
					go c.send(s)
				}
				for range streams {
					if took := <-ended; took != c.want {
						t.Errorf("ended after %v, want %v", took, c.want)
					}
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// TestF05_SilentNegotiation opens streams and never names a protocol.
func TestF05_SilentNegotiation(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		h := n.Host(t, transport.Config{}, nodetest.IP(0))
		slow := n.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(1))
		if err := slow.Connect(t.Context(), nodetest.AddrInfo(t, h)); err != nil {
			t.Fatal(err)
		}
		s, err := slow.Network().ConnsToPeer(h.ID())[0].NewStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		s.Write([]byte{19}) // the length of a line that doesn't come
		if _, err := io.Copy(io.Discard, s); err == nil {
			t.Error("the stream ended without a reset")
		}
		if took := time.Since(start); took > transport.FirstByteTimeout+time.Second {
			t.Errorf("reset after %v", took)
		}
	})
}

// TestF06_HugeIdentify answers identify with a frame of a claimed 2^62 bytes.
func TestF06_HugeIdentify(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		liar := n.Host(t, transport.Config{}, nodetest.IP(0))
		var asked atomic.Int32
		liar.SetStreamHandler(identify.ID, func(s network.Stream) {
			asked.Add(1)
			s.Write(binary.AppendUvarint(nil, 1<<62))
			s.Write(bytes.Repeat([]byte{0}, 1<<20))
			s.Close()
		})
		h := n.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(1))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := h.Connect(t.Context(), nodetest.AddrInfo(t, liar)); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if asked.Load() == 0 {
			t.Fatal("identify didn't ask")
		}
		if grew := after.TotalAlloc - before.TotalAlloc; grew > 16<<20 {
			t.Errorf("allocated %d bytes", grew)
		}
	})
}

// TestF08_NoGoroutineLeft opens and closes real hosts that talked.
func TestF08_NoGoroutineLeft(t *testing.T) {
	before := goleak.IgnoreCurrent()
	for _, listen := range []string{tcpLoopback, quicLoopback} {
		server, client := realHost(t, transport.Community, listen), realHost(t, transport.Errands)
		if err := client.Connect(t.Context(), nodetest.AddrInfo(t, server)); err != nil {
			t.Fatal(err)
		}
		if err := pingOnce(t, client, server.ID()); err != nil {
			t.Error(err)
		}
		client.Close()
		server.Close()
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

func pingOnce(t *testing.T, from *transport.Host, to peer.ID) error {
	ctx, cancel := context.WithCancel(t.Context())
	results := ping.Ping(ctx, from, to)
	r := <-results
	cancel()
	for range results { // until it has ended
	}
	return r.Error
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		realHost(b, transport.Contacts, tcpLoopback, quicLoopback).Close()
	}
}
