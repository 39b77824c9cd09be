package transport_test

import (
	"context"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

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
