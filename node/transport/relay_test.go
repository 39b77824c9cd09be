package transport_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

// relayWorld is a relay on machine 0, and a host on machine 1 with a reservation there.
func relayWorld(t *testing.T, n *nodetest.Network) (relay, home *transport.Host) {
	t.Helper()
	relay = n.Host(t, transport.Config{Role: transport.Community, Relay: true, Memory: transport.CommunityMemory}, nodetest.IP(0))
	home = n.Host(t, transport.Config{}, nodetest.IP(1))
	if lasts, err := home.Reserve(t.Context(), nodetest.AddrInfo(t, relay)); err != nil || lasts < time.Hour {
		t.Fatalf("the reservation lasts %v: %v", lasts, err)
	}
	return relay, home
}

// through is how a host with a reservation at a relay is dialled there.
func through(t testing.TB, relay, home *transport.Host) peer.AddrInfo {
	t.Helper()
	return peer.AddrInfo{ID: home.ID(), Addrs: transport.Circuit(nodetest.AddrInfo(t, relay))}
}

// TestF09_MegabyteOverARelay: libp2p's own limits cut a relayed connection after
// 128 KiB and after two minutes (docs/spec/roads.md, section 2).
func TestF09_MegabyteOverARelay(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		relay, home := relayWorld(t, n)
		got := make(chan []byte)
		home.HandleSecret(func(name protocol.ID) bool { return name == "/secret" }, func(s network.Stream) {
			b, err := io.ReadAll(s)
			if err != nil {
				t.Error(err)
			}
			got <- b
		})
		caller := n.Host(t, transport.Config{}, nodetest.IP(2))
		if err := caller.Connect(t.Context(), through(t, relay, home)); err != nil {
			t.Fatal(err)
		}
		if _, err := caller.NewStream(t.Context(), home.ID(), "/secret"); err == nil {
			t.Error("a stream over a relay was opened for who did not ask for that")
		}
		s, err := caller.NewStream(transport.Roundabout(t.Context()), home.ID(), "/secret")
		if err != nil {
			t.Fatal(err)
		}
		if !transport.IsRelayed(s.Conn()) || caller.Direct(home.ID()) {
			t.Errorf("the connection goes to %v", s.Conn().RemoteMultiaddr())
		}
		want := make([]byte, 1<<20)
		rand.Read(want)
		if _, err := s.Write(want[:1<<19]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute)
		if _, err := s.Write(want[1<<19:]); err != nil {
			t.Fatal(err)
		}
		s.CloseWrite()
		if !bytes.Equal(<-got, want) {
			t.Error("what arrived is not what was sent")
		}
		if r := relay.Relaying(); r.Reservations != 1 || r.Connections != 1 || r.Bytes < 1<<20 || r.Refused != 0 {
			t.Errorf("the relay counts %+v", r)
		}
		for who, h := range map[string]*transport.Host{"sends": caller, "receives": home} {
			if u, _ := h.Meter().Usage(); u.Bytes() < 1<<20 || u.Bytes() > 5<<18 {
				t.Errorf("who %s a megabyte has used %d bytes", who, u.Bytes())
			}
		}
	})
}

// TestRelease: a relay that gives us no reservation may be the one over which we
// talk to somebody.
func TestRelease(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		relay, home := relayWorld(t, n)
		caller := n.Host(t, transport.Config{}, nodetest.IP(2))
		if err := caller.Connect(transport.Roundabout(t.Context()), through(t, relay, home)); err != nil {
			t.Fatal(err)
		}
		for _, h := range []*transport.Host{caller, home} {
			h.Release(relay.ID())
			time.Sleep(time.Second)
			if len(caller.Network().ConnsToPeer(home.ID())) != 1 {
				t.Fatal("the relayed connection ended")
			}
		}
		if err := caller.Network().ClosePeer(home.ID()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		caller.Release(relay.ID())
		time.Sleep(time.Second)
		if caller.Direct(relay.ID()) {
			t.Error("the relay is kept for nothing")
		}
	})
}

// TestFiftyBehindOneAddress: a household, or a carrier's NAT. Each of fifty has
// what a user's daemon has: a host for conversations, one for look-ups, and one
// for each of three mailboxes.
func TestFiftyBehindOneAddress(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		relay := n.Host(t, transport.Config{Role: transport.Community, Relay: true, Memory: transport.CommunityMemory}, nodetest.IP(0))
		at := nodetest.AddrInfo(t, relay)
		const clients = 50
		home := nodetest.IP(1)
		var all sync.WaitGroup
		for i := range clients {
			listen := []ma.Multiaddr{ma.StringCast("/ip4/" + home.String() + "/tcp/0")}
			talk := n.Host(t, transport.Config{Listen: listen}, home)
			var errands []*transport.Host
			for range 4 {
				errands = append(errands, n.Host(t, transport.Config{Role: transport.Errands}, home))
			}
			all.Go(func() {
				if _, err := talk.Reserve(t.Context(), at); err != nil {
					t.Errorf("client %d has no reservation: %v", i, err)
				}
				for _, e := range errands {
					if err := e.Connect(t.Context(), at); err != nil {
						t.Errorf("client %d is not connected: %v", i, err)
					}
				}
			})
		}
		all.Wait()
		if got := relay.Relaying().Reservations; got != clients {
			t.Errorf("%d of %d clients have a reservation", got, clients)
		}
		if got := len(relay.Network().Conns()); got != 5*clients {
			t.Errorf("%d connections, want %d", got, 5*clients)
		}
	})
}

// TestF09_ReservationsAreBounded: no address takes all reservations, and what has none
// is not relayed.
func TestF09_ReservationsAreBounded(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		relay := n.Host(t, transport.Config{Role: transport.Community, Relay: true, Memory: transport.MinMemory}, nodetest.IP(0))
		at := nodetest.AddrInfo(t, relay)
		reserve := func(ip netip.Addr) bool {
			h := n.Host(t, transport.Config{Listen: []ma.Multiaddr{ma.StringCast("/ip4/" + ip.String() + "/tcp/0")}}, ip)
			_, err := h.Reserve(t.Context(), at)
			return err == nil
		}
		held := 0
		for range 40 {
			if reserve(nodetest.IP(1)) {
				held++
			}
		}
		if held == 0 || held > 24 {
			t.Errorf("one address has %d reservations of 32, want 24 at most", held)
		}
		if !reserve(nodetest.IP(2)) {
			t.Error("another address gets none")
		}
		stranger := n.Host(t, transport.Config{}, nodetest.IP(3))
		if err := stranger.Connect(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		caller := n.Host(t, transport.Config{}, nodetest.IP(4))
		if err := caller.Connect(t.Context(), through(t, relay, stranger)); err == nil {
			t.Error("a peer without a reservation was reached through the relay")
		}
	})
}

// TestF11_RelayedOnly: a host that is told to meet a peer through relays alone
// dials no other address of it, whatever it is given.
func TestF11_RelayedOnly(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		relay, home := relayWorld(t, n)
		caller := n.Host(t, transport.Config{}, nodetest.IP(2))
		caller.Open(home.ID(), transport.Relayed)
		if err := caller.Connect(t.Context(), nodetest.AddrInfo(t, home)); err == nil {
			t.Error("a peer to be relayed was dialled directly")
		}
		ctx := transport.Roundabout(context.Background())
		if err := caller.Connect(ctx, through(t, relay, home)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // nor does either side try later
		if caller.Direct(home.ID()) || home.Direct(caller.ID()) {
			t.Error("a relayed connection became a direct one")
		}
		if err := home.Punch(caller.ID()); err == nil {
			t.Error("a hole was punched for a peer that is no accepted contact")
		}
		caller.Open(home.ID(), transport.Dialled)
		if err := caller.Connect(t.Context(), nodetest.AddrInfo(t, home)); err != nil {
			t.Error(err)
		}
	})
}

// TestCircuit: a bridge's address is a secret, and appears in no address that
// leads through it (docs/spec/roads.md, section 3).
func TestCircuit(t *testing.T) {
	const id = "12D3KooWCjTcdWn6bcSjW5bT5bVFi5BRGcTrXd2RAz5yPdvrQKJW"
	info := func(addrs ...string) (out peer.AddrInfo) {
		out.ID, _ = peer.Decode(id)
		for _, a := range addrs {
			out.Addrs = append(out.Addrs, ma.StringCast(a))
		}
		return out
	}
	veil := "/ip4/20.1.1.1/tcp/443/tls/sni/example.org/http-path/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for name, test := range map[string]struct {
		addrs, want []string
	}{
		"both":         {[]string{"/ip4/20.1.1.1/tcp/1", "/ip4/20.1.1.1/udp/2/quic-v1", "/ip4/20.1.1.2/tcp/3"}, []string{"/ip4/20.1.1.1/udp/2/quic-v1/p2p/" + id + "/p2p-circuit", "/ip4/20.1.1.1/tcp/1/p2p/" + id + "/p2p-circuit"}},
		"a bridge":     {[]string{veil}, []string{"/p2p/" + id + "/p2p-circuit"}},
		"as we see it": {[]string{"/ip4/20.1.1.1/tcp/443/tls"}, []string{"/p2p/" + id + "/p2p-circuit"}},
		"both again":   {[]string{veil, "/ip4/20.1.1.1/tcp/1"}, []string{"/ip4/20.1.1.1/tcp/1/p2p/" + id + "/p2p-circuit"}},
		"its name":     {nil, []string{"/p2p/" + id + "/p2p-circuit"}},
		"unspecified":  {[]string{"/ip4/0.0.0.0/tcp/1"}, []string{"/p2p/" + id + "/p2p-circuit"}},
	} {
		got := transport.Circuit(info(test.addrs...))
		if len(got) != len(test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
			continue
		}
		for i := range got {
			if got[i].String() != test.want[i] {
				t.Errorf("%s: %v, want %v", name, got, test.want)
			}
		}
	}
}

// TestSilentRelay: a relay from which the other end has vanished holds up no other
// one, and is not waited for when the dial's time is over.
func TestSilentRelay(t *testing.T) {
	for _, silent := range []int{0, 3} {
		nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
			first, home := relayWorld(t, n)
			second := n.Host(t, transport.Config{Role: transport.Community, Relay: true, Memory: transport.CommunityMemory}, nodetest.IP(3))
			if _, err := home.Reserve(t.Context(), nodetest.AddrInfo(t, second)); err != nil {
				t.Fatal(err)
			}
			caller := n.Host(t, transport.Config{}, nodetest.IP(2))
			n.Cut(nodetest.IP(1), nodetest.IP(silent))
			n.Cut(nodetest.IP(silent), nodetest.IP(1))
			both := through(t, first, home)
			both.Addrs = append(both.Addrs, through(t, second, home).Addrs...)
			start := time.Now()
			if err := caller.Connect(t.Context(), both); err != nil {
				t.Errorf("without relay %d: %v", silent, err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("without relay %d it took %v", silent, took)
			}
			if err := caller.Network().ClosePeer(home.ID()); err != nil {
				t.Fatal(err)
			}
			one := through(t, map[int]*transport.Host{0: first, 3: second}[silent], home)
			caller.ForgetFailures()
			caller.Peerstore().ClearAddrs(home.ID())
			start = time.Now()
			if err := caller.Connect(t.Context(), one); err == nil {
				t.Errorf("relay %d has a way", silent)
			}
			if took := time.Since(start); took != 3*time.Second {
				t.Errorf("a silent relay was waited for for %v", took)
			}
		})
	}
}

// TestAbandon: a relay that says nothing is let go of, one that answers stays,
// whatever it answers: others talk through it.
func TestAbandon(t *testing.T) {
	for name, test := range map[string]struct {
		change func(n *nodetest.Network, relay *transport.Host)
		stays  bool
	}{
		"it answers":           {func(*nodetest.Network, *transport.Host) {}, true},
		"it is asked too much": {func(_ *nodetest.Network, relay *transport.Host) { relay.RemoveStreamHandler(ping.ID) }, true},
		"it says nothing":      {func(n *nodetest.Network, _ *transport.Host) { n.Blackhole(nodetest.IP(0)) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
				relay, home := relayWorld(t, n)
				caller := n.Host(t, transport.Config{}, nodetest.IP(2))
				if err := caller.Connect(t.Context(), through(t, relay, home)); err != nil {
					t.Fatal(err)
				}
				test.change(n, relay)
				caller.Abandon(t.Context(), caller.Network().ConnsToPeer(home.ID())[0])
				if stays := len(caller.Network().ConnsToPeer(relay.ID())) > 0; stays != test.stays {
					t.Errorf("connected to the relay: %v, want %v", stays, test.stays)
				}
			})
		})
	}
}
