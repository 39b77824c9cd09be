package transport

import (
	"crypto/rand"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

func TestReachOf(t *testing.T) {
	for _, c := range []struct {
		addr string
		want Reach
	}{
		{"/ip4/1.2.3.4/tcp/1", Public},
		{"/ip4/1.2.3.4/udp/1/quic-v1", Public},
		{"/ip6/2606:4700::1/tcp/1", Public},
		{"/ip4/10.1.2.3/tcp/1", Private},
		{"/ip4/172.16.0.1/tcp/1", Private},
		{"/ip4/192.168.1.1/tcp/1", Private},
		{"/ip4/100.64.0.1/tcp/1", Private},
		{"/ip4/169.254.169.254/tcp/80", Private},
		{"/ip6/fd00::1/tcp/1", Private},
		{"/ip6/fe80::1/tcp/1", Private},
		{"/ip6zone/eth0/ip6/fe80::1/tcp/1", Private},
		{"/ip4/127.0.0.1/tcp/1", Loopback},
		{"/ip4/127.8.8.8/tcp/1", Loopback},
		{"/ip6/::1/tcp/1", Loopback},
		{"/ip6/::ffff:127.0.0.1/tcp/1", Loopback},
		{"/ip6/::ffff:10.0.0.1/tcp/1", Private},
		{"/ip6/64:ff9b::7f00:1/tcp/1", Loopback},
		{"/ip6/64:ff9b::a00:1/tcp/1", Private},
		{"/ip6/64:ff9b::102:304/tcp/1", Public},
		{"/ip6/64:ff9b:1::a00:1/tcp/1", Private},
		{"/ip6/2002:7f00:1::/tcp/1", Loopback},
		{"/ip6/2002:c0a8:101::/tcp/1", Private},
		{"/ip4/0.0.0.0/tcp/1", 0},
		{"/ip6/::/tcp/1", 0},
		{"/ip4/224.0.0.251/udp/5353/quic-v1", 0},
		{"/ip4/255.255.255.255/tcp/1", 0},
		{"/ip6/ff02::1/tcp/1", 0},
		{"/ip6/::127.0.0.1/tcp/1", 0}, // IPv4-compatible, long dead
		{"/dns4/example.org/tcp/1", 0},
		{"/ip4/1.2.3.4/tcp/1/p2p-circuit", 0},
		{"/unix/run/some.sock", 0},
	} {
		if got := ReachOf(ma.StringCast(c.addr)); got != c.want {
			t.Errorf("%s: class %d, want %d", c.addr, got, c.want)
		}
	}
}

func TestE10_DialsStayInReach(t *testing.T) {
	p := identity(t, crypto.Ed25519)
	addrs := map[Reach]ma.Multiaddr{
		Public:   ma.StringCast("/ip4/1.2.3.4/tcp/1"),
		Private:  ma.StringCast("/ip4/10.0.0.1/tcp/1"),
		Loopback: ma.StringCast("/ip4/127.0.0.1/tcp/1"),
		0:        ma.StringCast("/ip4/0.0.0.0/tcp/1"),
	}
	for reach := range Public | Private | Loopback + 1 {
		g := gater{reach: reach}
		for class, a := range addrs {
			if got, want := g.InterceptAddrDial(p, a), class&reach != 0; got != want {
				t.Errorf("reach %03b: %s allowed: %t", reach, a, got)
			}
		}
	}
}

func TestF02_OnlyEd25519(t *testing.T) {
	addr := ma.StringCast("/ip4/1.2.3.4/tcp/1")
	for _, c := range []struct {
		kind int
		want bool
	}{{crypto.Ed25519, true}, {crypto.RSA, false}, {crypto.ECDSA, false}, {crypto.Secp256k1, false}} {
		g, p := gater{reach: Public}, identity(t, c.kind)
		if g.InterceptPeerDial(p) != c.want || g.InterceptAddrDial(p, addr) != c.want || g.InterceptSecured(0, p, nil) != c.want {
			t.Errorf("key type %d: want allowed %t in all three places", c.kind, c.want)
		}
	}
	if (gater{reach: Public}).InterceptPeerDial("not a peer") {
		t.Error("a peer id without a key passed")
	}
}

func TestBlocked(t *testing.T) {
	p, other := identity(t, crypto.Ed25519), identity(t, crypto.Ed25519)
	g := gater{reach: Public, blocked: func(q peer.ID) bool { return q == p }}
	if g.InterceptPeerDial(p) || g.InterceptSecured(0, p, nil) || !g.InterceptPeerDial(other) {
		t.Error("blocked peer passed, or another did not")
	}
}

func identity(t *testing.T, kind int) peer.ID {
	t.Helper()
	_, pub, err := crypto.GenerateKeyPairWithReader(kind, 2048, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := peer.IDFromPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
