package transport_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/node/transport"
)

// TestModeDials: a censored host dials bridges and nobody else, whoever asks it
// to, and lets go of what it had.
func TestModeDials(t *testing.T) {
	other, third := realHost(t, transport.Community, tcpLoopback), realHost(t, transport.Community, tcpLoopback)
	h := realHost(t, transport.Contacts, tcpLoopback)
	connect := func(to *transport.Host) error {
		addrs, err := to.ListenAddrs()
		if err != nil {
			t.Fatal(err)
		}
		return h.Connect(context.Background(), peer.AddrInfo{ID: to.ID(), Addrs: addrs})
	}
	if err := connect(other); err != nil {
		t.Fatal(err)
	}
	h.Peerstore().AddAddrs(third.ID(), []ma.Multiaddr{ma.StringCast("/dns4/node.example/tcp/1")}, 1<<40)
	if err := h.SetMode(transport.Censored); err != nil {
		t.Fatal(err)
	}
	if h.Mode() != transport.Censored {
		t.Error("the mode is", h.Mode())
	}
	if got := h.Network().Connectedness(other.ID()); got == network.Connected {
		t.Error("a plain connection outlived the mode")
	}
	for _, to := range []*transport.Host{other, third} {
		if addrs := h.Peerstore().Addrs(to.ID()); len(addrs) > 0 {
			t.Error("the peerstore still holds", addrs)
		}
		if err := connect(to); err == nil {
			t.Error("a plain address was dialled")
		}
	}
	if addrs, err := h.ListenAddrs(); err != nil || len(addrs) > 0 {
		t.Error("listens on", addrs, err)
	}
	if err := h.SetMode(transport.Open); err != nil {
		t.Fatal(err)
	}
	if err := connect(other); err != nil {
		t.Error("back in open mode:", err)
	}
	if addrs, err := h.ListenAddrs(); err != nil || len(addrs) != 1 {
		t.Error("back in open mode it listens on", addrs, err)
	}
	if err := other.SetMode(transport.Censored); err == nil {
		t.Error("a community node hides")
	}
}

func TestModePermits(t *testing.T) {
	h := realHost(t, transport.Contacts)
	if err := h.SetMode(transport.Censored); err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		"/ip4/192.0.0.131/tcp/443":                            false,
		"/ip4/192.0.0.131/udp/443/quic-v1":                    false,
		"/dns4/example.com/tcp/443":                           false,
		"/dns4/example.com/tcp/443/tls/ws":                    false,
		"/ip4/10.0.0.1/tcp/443":                               false,
		"/dns4/example.com/tcp/443/tls/http-path/" + veilPath: true,
		"/ip4/192.0.0.131/tcp/443/tls/certhash/" + veilPin + "/http-path/" + veilPath + veilPeer: true,
		"/ip4/192.0.0.131/udp/443/quic-v1/certhash/" + veilPin + "/http-path/" + veilPath:        false,
		veilPeer + "/p2p-circuit": true, // the way to the relay is judged when it is dialled
	} {
		if got := h.Permits(ma.StringCast(addr)); got != want {
			t.Errorf("%s: permitted %t, want %t", addr, got, want)
		}
	}
}

// TestModeMidway: a dial that began before the mode became censored, and ends
// after it, leaves no connection.
func TestModeMidway(t *testing.T) {
	other, h := realHost(t, transport.Community, tcpLoopback), realHost(t, transport.Contacts)
	addrs, err := other.ListenAddrs()
	if err != nil {
		t.Fatal(err)
	}
	_, address, err := manet.DialArgs(addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	// A slow way to it.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	came, censored := make(chan struct{}), make(chan struct{})
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		close(came)
		<-censored
		to, err := net.Dial("tcp", address)
		if err != nil {
			return
		}
		defer to.Close()
		go io.Copy(to, c)
		io.Copy(c, to)
	}()
	at, err := manet.FromNetAddr(l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Connect(context.Background(), peer.AddrInfo{ID: other.ID(), Addrs: []ma.Multiaddr{at}})
	}()
	<-came
	if err := h.SetMode(transport.Censored); err != nil {
		t.Fatal(err)
	}
	close(censored)
	<-done
	for range 50 {
		if len(h.Network().ConnsToPeer(other.ID())) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("a plain connection was made in censored mode")
}

// TestModeNames: what a peer says in identify to be its addresses isn't looked up
// in censored mode, where a bridge could tell from it who asks.
func TestModeNames(t *testing.T) {
	var asked atomic.Int32
	net.DefaultResolver.PreferGo, net.DefaultResolver.Dial = true, func(context.Context, string, string) (net.Conn, error) {
		asked.Add(1)
		return nil, errors.New("no resolver here")
	}
	defer func() { net.DefaultResolver.PreferGo, net.DefaultResolver.Dial = false, nil }()
	h, other := realHost(t, transport.Contacts), realHost(t, transport.Contacts)
	if err := h.SetMode(transport.Censored); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"/dns4/node.example/tcp/1", "/dnsaddr/node.example", "/dns/node.example/udp/1/quic-v1"} {
		h.Peerstore().AddAddrs(other.ID(), []ma.Multiaddr{ma.StringCast(a)}, peerstore.TempAddrTTL)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := h.Connect(ctx, peer.AddrInfo{ID: other.ID()}); err == nil {
		t.Error("it was reached")
	}
	if _, err := h.NewStream(ctx, other.ID(), "/x"); err == nil {
		t.Error("it was reached")
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("%d look-ups in the clear", n)
	}
}
