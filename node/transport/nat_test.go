package transport

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// seenConn is a connection as far as kindOf looks at it.
type seenConn struct {
	network.Conn
	to     peer.ID
	local  string
	closed bool
}

func (c *seenConn) RemotePeer() peer.ID          { return c.to }
func (c *seenConn) LocalMultiaddr() ma.Multiaddr { return ma.StringCast(c.local) }
func (c *seenConn) IsClosed() bool               { return c.closed }

// TestNATKind: what two others see of one socket tells the kind of NAT, and
// nothing else does.
func TestNATKind(t *testing.T) {
	const socket, other = "/ip4/0.0.0.0/udp/4040/quic-v1", "/ip4/0.0.0.0/tcp/5050"
	const outside, outside2 = "/ip4/203.0.113.7/udp/1000/quic-v1", "/ip4/203.0.113.7/udp/1001/quic-v1"
	type seen struct {
		conn seenConn
		as   string
	}
	for _, test := range []struct {
		name string
		own  string
		seen []seen
		want NAT
	}{
		{"nobody looks", "/ip4/192.168.1.2/udp/4040/quic-v1", nil, NATUnknown},
		{"one looks", "/ip4/192.168.1.2/udp/4040/quic-v1", []seen{{seenConn{to: "a", local: socket}, outside}}, NATUnknown},
		{"our own", outside, []seen{{seenConn{to: "a", local: socket}, outside}}, NATNone},
		{"the same", "/ip4/192.168.1.2/udp/4040/quic-v1", []seen{{seenConn{to: "a", local: socket}, outside}, {seenConn{to: "b", local: socket}, outside}}, NATSame},
		{"one each", "/ip4/192.168.1.2/udp/4040/quic-v1", []seen{{seenConn{to: "a", local: socket}, outside}, {seenConn{to: "b", local: socket}, outside2}}, NATEach},
		{"two sockets", "/ip4/192.168.1.2/udp/4040/quic-v1", []seen{{seenConn{to: "a", local: socket}, outside}, {seenConn{to: "b", local: other}, outside2}}, NATUnknown},
		{"one looks twice", "/ip4/192.168.1.2/udp/4040/quic-v1", []seen{{seenConn{to: "a", local: socket}, outside}, {seenConn{to: "a", local: socket}, outside2}}, NATUnknown},
		{"one is gone", "/ip4/192.168.1.2/udp/4040/quic-v1", []seen{{seenConn{to: "a", local: socket}, outside}, {seenConn{to: "b", local: socket, closed: true}, outside2}}, NATUnknown},
	} {
		all := make(map[network.Conn]ma.Multiaddr)
		for _, s := range test.seen {
			all[&s.conn] = ma.StringCast(s.as)
		}
		if got := kindOf([]ma.Multiaddr{ma.StringCast(test.own)}, all); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}
