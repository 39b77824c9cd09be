package transport_test

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

// TestE10_OnlyWhoWasHeard: a host that may dial public addresses alone dials a
// private one only while somebody it knows was heard there, and what stands for a
// link-local address never because somebody says so.
func TestE10_OnlyWhoWasHeard(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		there := netip.MustParseAddr("192.168.5.7")
		h, near := n.Host(t, transport.Config{}, nodetest.IP(0)), n.Host(t, transport.Config{}, there)
		if h.Connect(t.Context(), nodetest.AddrInfo(t, near)) == nil {
			t.Fatal("a private address was dialled")
		}
		heard := there.String()
		h.AllowNear(func(a ma.Multiaddr) bool { return strings.Contains(a.String(), heard) })
		if err := h.Connect(t.Context(), nodetest.AddrInfo(t, near)); err != nil {
			t.Errorf("who was heard is not dialled: %v", err)
		}
		public := n.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(1))
		public.AllowNear(func(ma.Multiaddr) bool { return true })
		if err := public.Connect(t.Context(), nodetest.AddrInfo(t, near)); err != nil {
			t.Errorf("who was heard is not dialled: %v", err)
		}
	})
}

// TestNearAddr: a link-local address is dressed and dialled on a real interface.
func TestNearAddr(t *testing.T) {
	plain := netip.MustParseAddr("192.168.1.1")
	if a, ok := transport.NearAddr(plain); !ok || a != plain {
		t.Errorf("%v becomes %v, %v", plain, a, ok)
	}
	interfaces, err := net.Interfaces()
	if err != nil || len(interfaces) == 0 {
		t.Skip("no interface")
	}
	zone := interfaces[0].Name
	a, ok := transport.NearAddr(netip.MustParseAddr("fe80::1:2:3:4").WithZone(zone))
	if !ok || a.IsLinkLocalUnicast() || !a.IsPrivate() {
		t.Errorf("dressed it is %v, %v", a, ok)
	}
	for _, bad := range []string{"fe80::1%no-such-interface", "fe80:1::1%" + zone} {
		if a, ok := transport.NearAddr(netip.MustParseAddr(bad)); ok {
			t.Errorf("%s becomes %v", bad, a)
		}
	}
}

// TestCensoredOnTheLAN: in censored mode a host is listened to at private addresses
// alone, and only when the local network is on.
func TestCensoredOnTheLAN(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		there := netip.MustParseAddr("192.168.5.7")
		h := n.Host(t, transport.Config{}, there)
		if err := h.ListenNear(there); err != nil || len(listening(h)) != 1 {
			t.Errorf("open, it listens at %v, %v", h.Network().ListenAddresses(), err)
		}
		if err := h.SetMode(transport.Censored); err != nil {
			t.Fatal(err)
		}
		for _, a := range []netip.Addr{nodetest.IP(3), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("0.0.0.0")} {
			if err := h.ListenNear(a); err == nil && len(listening(h)) != 0 {
				t.Errorf("censored, it listens at %v", h.Network().ListenAddresses())
			}
		}
		for range 2 {
			if err := h.ListenNear(there); err != nil || len(listening(h)) != 1 {
				t.Errorf("on the local network it listens at %v, %v", h.Network().ListenAddresses(), err)
			}
		}
		neighbour := n.Host(t, transport.Config{Dial: transport.Private}, netip.MustParseAddr("192.168.5.8"))
		if err := neighbour.Connect(t.Context(), nodetest.AddrInfo(t, h)); err != nil {
			t.Errorf("a neighbour does not get in: %v", err)
		}
		stranger := n.Host(t, transport.Config{Dial: transport.Private}, nodetest.IP(4))
		if stranger.Connect(t.Context(), nodetest.AddrInfo(t, h)) == nil {
			t.Error("one from elsewhere gets in")
		}
		// When the machine moves, only where it still is is listened.
		elsewhere := netip.MustParseAddr("192.168.6.7")
		if h.CloseNear(elsewhere, there); len(listening(h)) != 1 {
			t.Errorf("at one address more it listens at %v", h.Network().ListenAddresses())
		}
		if h.CloseNear(elsewhere); len(listening(h)) != 0 {
			t.Errorf("after the move it listens at %v", h.Network().ListenAddresses())
		}
		if err := h.ListenNear(there); err != nil || len(listening(h)) != 1 {
			t.Errorf("back again it listens at %v, %v", h.Network().ListenAddresses(), err)
		}
		before := placeOf(t, h)
		h.CloseNear()
		if after := placeOf(t, h); !slices.EqualFunc(before, after, ma.Multiaddr.Equal) {
			t.Errorf("switched off, the place is %v, and it was %v: that looks like a move", after, before)
		}
		if l := listening(h); len(l) != 0 {
			t.Errorf("switched off, it listens at %v", l)
		}
		if err := h.ListenNear(there); err != nil {
			t.Fatal(err)
		}
		near := listening(h)
		if err := h.SetMode(transport.Open); err != nil || len(listening(h)) != 1 || listening(h)[0].Equal(near[0]) {
			t.Errorf("open again, it listens at %v, %v", listening(h), err)
		}
	})
}

// TestPlaceWithoutListeners: a host that listens nowhere, because it hides, or is
// censored, sees that the machine moves all the same.
func TestPlaceWithoutListeners(t *testing.T) {
	addrs, err := manet.InterfaceMultiaddrs()
	if err != nil || !slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool { return transport.ReachOf(a)&(transport.Public|transport.Private) != 0 }) {
		t.Skip("this machine is in no network")
	}
	quiet, censored := realHost(t, transport.Contacts), realHost(t, transport.Contacts, tcpLoopback)
	if at := placeOf(t, censored); len(at) != 1 || transport.ReachOf(at[0]) != transport.Loopback {
		t.Errorf("one that listens is at %v", at)
	}
	if err := censored.SetMode(transport.Censored); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*transport.Host{quiet, censored} {
		at := placeOf(t, h)
		if len(at) == 0 {
			t.Error("one that listens nowhere is nowhere")
		}
		for _, a := range at {
			if transport.ReachOf(a)&(transport.Public|transport.Private) == 0 {
				t.Errorf("it is at %v, like every machine", a)
			}
		}
	}
}

func placeOf(t *testing.T, h *transport.Host) []ma.Multiaddr {
	t.Helper()
	_, at, err := h.Place()
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// listening is where a host listens itself, and not at a relay.
func listening(h *transport.Host) (out []ma.Multiaddr) {
	for _, a := range h.Network().ListenAddresses() {
		if _, err := a.ValueForProtocol(ma.P_CIRCUIT); err != nil {
			out = append(out, a)
		}
	}
	return out
}
