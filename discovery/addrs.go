package discovery

import (
	"net/netip"
	"slices"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// isEd25519 reports whether a peer id holds an Ed25519 key: the only kind that
// takes part, since ids of other kinds cost more to check than to send.
func isEd25519(p peer.ID) bool {
	if len(p) != ed25519IDSize {
		return false
	}
	key, err := p.ExtractPublicKey()
	return err == nil && key.Type() == crypto.Ed25519
}

// ed25519IDSize is the length of such an id: an identity multihash of a
// protobuf of a 32-byte key.
const ed25519IDSize = 38

// capAddrs keeps the first addresses of a peer, within the bounds of
// docs/spec/discovery.md, section 3.
func capAddrs(info peer.AddrInfo) peer.AddrInfo {
	return peer.AddrInfo{ID: info.ID, Addrs: keepAddrs(info.Addrs)}
}

func keepAddrs(addrs []ma.Multiaddr) []ma.Multiaddr {
	total := 0
	for i, a := range addrs {
		total += len(a.Bytes())
		if i == maxPeerAddrs || total > maxPeerAddrBytes {
			return addrs[:i:i]
		}
	}
	return addrs
}

// tableAddrs is keepAddrs for what the table may hold and pass on: never a
// bridge's address, which is a secret (threats D06).
func tableAddrs(addrs []ma.Multiaddr) []ma.Multiaddr {
	return keepAddrs(slices.DeleteFunc(slices.Clone(addrs), hasPath))
}

// hasPath reports whether an address has a path in it, as bridges' have.
func hasPath(a ma.Multiaddr) bool {
	return slices.ContainsFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_HTTP_PATH })
}

// keepPublicAddrs is tableAddrs for the open internet.
func keepPublicAddrs(addrs []ma.Multiaddr) []ma.Multiaddr {
	return keepAddrs(slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool { return hasPath(a) || !manet.IsPublicAddr(a) }))
}

func sameAddrs(a, b peer.AddrInfo) bool {
	return slices.EqualFunc(a.Addrs, b.Addrs, func(x, y ma.Multiaddr) bool { return x.Equal(y) })
}

// networkOf names the network that a peer is in: its first address's /16, or /32
// of IPv6. A peer known by name alone is a network of its own.
func networkOf(info peer.AddrInfo) string {
	for _, a := range info.Addrs {
		if prefix, ok := addrPrefix(a, 16, 32); ok {
			return prefix.String()
		}
	}
	return string(info.ID)
}

func addrPrefix(a ma.Multiaddr, bits4, bits6 int) (netip.Prefix, bool) {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap()
	bits := bits4
	if addr.Is6() {
		bits = bits6
	}
	prefix, err := addr.Prefix(bits)
	return prefix, err == nil
}
