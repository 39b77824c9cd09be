package transport

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// libp2p dials no link-local address of IPv6, and on a switch that leads nowhere
// there is often no other. NearAddr dresses one as an address of a network that
// exists nowhere but in this process, and the dialler undresses it:
//
//	nearForm /48 | index of the interface 16 | the last 64 bits of the address
var nearForm = netip.MustParsePrefix("fdb4:5a1e:6e0f::/48") // RFC 4193: random, and private

// NearAddr returns the address under which a host dials a machine of the local
// network, and whether it can. Only an address with a zone looks different.
func NearAddr(a netip.Addr) (netip.Addr, bool) {
	if a.Zone() == "" {
		return a, true
	}
	i, err := net.InterfaceByName(a.Zone())
	raw := a.As16()
	if err != nil || i.Index > 1<<16-1 || !netip.MustParsePrefix("fe80::/64").Contains(a.WithZone("")) {
		return a, false
	}
	form := nearForm.Addr().As16()
	binary.BigEndian.PutUint16(form[6:], uint16(i.Index))
	copy(form[8:], raw[8:])
	return netip.AddrFrom16(form), true
}

// isNearForm reports whether an address is what NearAddr makes of a link-local one.
func isNearForm(a ma.Multiaddr) bool {
	ip, err := manet.ToIP(a)
	if err != nil {
		return false
	}
	addr, ok := netip.AddrFromSlice(ip)
	return ok && nearForm.Contains(addr)
}

// undressed is the host:port to dial for one that NearAddr may have made.
func undressed(address string) string {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !nearForm.Contains(at.Addr()) {
		return address
	}
	form := at.Addr().As16()
	i, err := net.InterfaceByIndex(int(binary.BigEndian.Uint16(form[6:])))
	if err != nil {
		return address
	}
	raw := [16]byte{0: 0xfe, 1: 0x80}
	copy(raw[8:], form[8:])
	return netip.AddrPortFrom(netip.AddrFrom16(raw).WithZone(i.Name), at.Port()).String()
}

// nearDialer is a net.Dialer that knows what NearAddr makes.
type nearDialer struct{ net.Dialer }

func (d *nearDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return d.Dialer.DialContext(ctx, network, undressed(address))
}

// nearTCP is libp2p's TCP that also dials what NearAddr makes.
type nearTCP struct {
	*soleTCP
	near *tcp.TcpTransport
}

func newNearTCP(all *tcp.TcpTransport, up transport.Upgrader, resources network.ResourceManager) (nearTCP, error) {
	near, err := tcp.NewTCPTransport(up, resources, nil, tcp.WithConnectionTimeout(dialTimeout),
		tcp.WithDialerForAddr(func(ma.Multiaddr) (tcp.ContextDialer, error) { return new(nearDialer), nil }))
	return nearTCP{&soleTCP{all}, near}, err
}

func (t nearTCP) to(a ma.Multiaddr) *tcp.TcpTransport {
	if isNearForm(a) {
		return t.near
	}
	return t.TcpTransport
}

func (t nearTCP) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.to(a).Dial(ctx, a, p)
}

func (t nearTCP) DialWithUpdates(ctx context.Context, a ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	return t.to(a).DialWithUpdates(ctx, a, p, updates)
}

// spareNear dials the local network directly and everything else by dial: no
// proxy leads there.
func (h *Host) spareNear(dial DialFunc) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if at, err := netip.ParseAddrPort(address); err == nil {
			near := h.near.Load()
			a, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(at))
			if err == nil && near != nil && ReachOf(a)&Private != 0 && (*near)(a) {
				return new(nearDialer).DialContext(ctx, network, address)
			}
		}
		return dial(ctx, network, address)
	}
}

// isNear reports whether somebody we know was heard at a private address.
func (h *Host) isNear(a ma.Multiaddr) bool { return gater{near: &h.near}.isNear(a) }

// ListenNear listens by TCP at one of our private addresses on the local network,
// with a zone where it needs one, for a host in censored mode, which listens
// nowhere else. It does nothing in open mode, or if it listens there already.
func (h *Host) ListenNear(at netip.Addr) error {
	h.mode.changing.Lock()
	defer h.mode.changing.Unlock()
	ip, err := manet.FromIPAndZone(at.AsSlice(), at.Zone())
	if err != nil {
		return err
	}
	tcp, err := ma.NewMultiaddr("/tcp/0")
	if err != nil {
		return err
	}
	a := ip.Encapsulate(tcp)
	if h.mode.get() != Censored || h.mode.dead || ReachOf(a) != Private {
		return nil
	}
	for _, l := range h.Network().ListenAddresses() {
		if have, err := manet.ToIP(l); err == nil && have.Equal(at.AsSlice()) {
			return nil
		}
	}
	return h.Network().Listen(a)
}

// CloseNear ends what ListenNear began, but at the addresses that the machine still
// has: every network that a laptop was on would leave a socket behind, which listens
// again, at a port that nobody is told, as soon as it is back.
func (h *Host) CloseNear(but ...netip.Addr) {
	h.mode.changing.Lock()
	defer h.mode.changing.Unlock()
	sw, ok := h.Network().(*swarm.Swarm)
	if !ok || h.mode.get() != Censored {
		return
	}
	for _, l := range sw.ListenAddresses() {
		at, _ := ipOf(l)
		kept := slices.ContainsFunc(but, func(a netip.Addr) bool { return a.WithZone("") == at })
		if ReachOf(l) == Private && !kept {
			sw.ListenClose(l)
		}
	}
}
