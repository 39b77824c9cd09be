package transport

import (
	"net/netip"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Reach is a set of address classes.
type Reach uint8

const (
	Public   Reach = 1 << iota // routable on the Internet
	Private                    // a LAN: RFC 1918, RFC 6598, unique local, link local
	Loopback                   // this machine
)

// ReachOf returns the class of an address, or 0 for an address nobody should
// dial: unspecified (which dials this machine), multicast, reserved, relayed,
// or not an IP address at all. IPv4 addresses dressed as IPv6 (mapped, NAT64,
// 6to4) have the class of what they hide.
func ReachOf(a ma.Multiaddr) Reach {
	relayed := false
	ma.ForEach(a, func(c ma.Component) bool {
		relayed = relayed || c.Protocol().Code == ma.P_CIRCUIT
		return !relayed
	})
	netIP, err := manet.ToIP(a)
	if err != nil || relayed {
		return 0
	}
	ip, ok := netip.AddrFromSlice(netIP)
	if !ok {
		return 0
	}
	return reachOf(ip)
}

var (
	carrierNAT = netip.MustParsePrefix("100.64.0.0/10")  // RFC 6598
	nat64      = netip.MustParsePrefix("64:ff9b::/96")   // RFC 6052
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215: may name any private address
	sixToFour  = netip.MustParsePrefix("2002::/16")      // RFC 3056
)

func reachOf(ip netip.Addr) Reach {
	ip = ip.Unmap().WithZone("")
	raw := ip.As16()
	switch {
	case nat64.Contains(ip):
		return reachOf(netip.AddrFrom4([4]byte(raw[12:])))
	case sixToFour.Contains(ip):
		return reachOf(netip.AddrFrom4([4]byte(raw[2:6])))
	case nat64Local.Contains(ip):
		return Private
	case ip.IsLoopback():
		return Loopback
	case ip.IsPrivate(), ip.IsLinkLocalUnicast(), carrierNAT.Contains(ip):
		return Private
	}
	a, err := manet.FromIP(ip.AsSlice())
	if err != nil || !manet.IsPublicAddr(a) {
		return 0
	}
	return Public
}

// gater decides which connections may exist. A host reaches as far as the
// user's own ways in do and no further, so that an address learned from a
// stranger can't turn this host against its own machine or LAN (threats E10).
type gater struct {
	reach   Reach
	role    Role
	meter   *Meter // nil: no budget
	names   bool   // Config.DialTCP resolves them, or a proxy, and answers for what they lead to
	blocked func(peer.ID) bool
	near    *atomic.Pointer[func(ma.Multiaddr) bool] // see Host.AllowNear; holds nil for none
	mode    *modeState                               // nil: open
	roads   *roads                                   // nil: every peer is Dialled
	calls   *unproven                                // nil: no bound
}

var _ connmgr.ConnectionGater = gater{}

func (g gater) InterceptPeerDial(p peer.ID) bool { return g.welcome(p) && g.meter.mayDial(g.role) }

func (g gater) InterceptAddrDial(p peer.ID, a ma.Multiaddr) bool {
	if !g.welcome(p) || !g.mode.permits(a) && !g.isNear(a) {
		return false
	}
	if relay, ok := RelayOf(a); ok {
		// The connection to the relay is judged once more when it is made; a relay
		// that is named without an address has to be known already.
		if len(relay) > 1 && !g.reaches(relay) {
			return false
		}
		g.calls.name(p, relay)
		return true
	}
	return g.reaches(a) && (g.roads == nil || g.roads.get(p) != Relayed) && (g.isNear(a) || g.calls.mayDial(p, a))
}

// reaches reports whether an address lies where the host may dial. A bridge may
// be known by a name.
func (g gater) reaches(a ma.Multiaddr) bool {
	if v, err := ParseVeil(a); err == nil && v.named() {
		return g.reach&Public != 0 // what the name leads to is checked when it is known
	}
	return ReachOf(a)&g.reach != 0 && !isNearForm(a) || g.names && named(a) || g.isNear(a)
}

// isNear reports whether somebody we know was heard at a private address.
func (g gater) isNear(a ma.Multiaddr) bool {
	if g.near == nil || ReachOf(a)&Private == 0 {
		return false
	}
	near := g.near.Load()
	return near != nil && (*near)(a)
}

// InterceptAccept lets every address try while there is a budget: limits are the
// resource manager's. In censored mode only relays and the local network are listened
// on, and taken from.
func (g gater) InterceptAccept(c network.ConnMultiaddrs) bool {
	if g.mode != nil && g.mode.get() == Censored && !isRelayed(c.RemoteMultiaddr()) && ReachOf(c.RemoteMultiaddr()) != Private {
		return false
	}
	return g.meter.mayTalk(g.role)
}

func (g gater) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return g.welcome(p)
}

func (g gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// welcome reports whether the peer holds an Ed25519 key, which is the one kind
// kith makes and the one kind whose verification costs the same for every key
// (threats F02), and isn't blocked.
func (g gater) welcome(p peer.ID) bool {
	key, err := p.ExtractPublicKey()
	if err != nil || key.Type() != crypto.Ed25519 || g.meter.floods(p) {
		return false
	}
	return g.blocked == nil || !g.blocked(p)
}

// onlyEd25519 is checked where a key is given to us.
func onlyEd25519(key crypto.PrivKey) bool {
	return key != nil && key.Type() == crypto.Ed25519
}
