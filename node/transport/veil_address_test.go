package transport_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/transport"
)

const (
	veilPath = "AAECAwQFBgcICQoLDA0ODw"
	veilPin  = "uEiAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	veilPeer = "/p2p/12D3KooWGzBRs2Tgwhq7GbhBMQTLCNs1eV1kA7dCQ7GvG8C7pS3h"
)

// TestVeilAddress follows docs/spec/veil.md, section 2.
func TestVeilAddress(t *testing.T) {
	for _, test := range []struct {
		addr   string
		server string // ServerName
	}{
		{"/ip4/192.0.0.131/tcp/443/tls/sni/example.com/http-path/" + veilPath, "example.com"},
		{"/ip4/192.0.0.131/tcp/443/tls/certhash/" + veilPin + "/http-path/" + veilPath, ""},
		{"/ip4/192.0.0.131/tcp/8443/tls/sni/a-b.example/certhash/" + veilPin + "/http-path/" + veilPath, "a-b.example"},
		{"/ip6/2001:db8::1/tcp/443/tls/certhash/" + veilPin + "/http-path/" + veilPath, ""},
		{"/dns4/example.com/tcp/443/tls/http-path/" + veilPath, "example.com"},
		{"/dns6/example.com/tcp/443/tls/http-path/" + veilPath, "example.com"},
		{"/dns4/example.com/tcp/443/tls/certhash/" + veilPin + "/http-path/" + veilPath, "example.com"},
		{"/dns4/example.com/tcp/443/tls/sni/other.example/certhash/" + veilPin + "/http-path/" + veilPath, "other.example"},
	} {
		a := ma.StringCast(test.addr)
		v, err := transport.ParseVeil(a)
		if err != nil {
			t.Errorf("%s: %v", test.addr, err)
			continue
		}
		if v.ServerName() != test.server {
			t.Errorf("%s: server name %q, want %q", test.addr, v.ServerName(), test.server)
		}
		back, err := v.Multiaddr()
		if err != nil || !back.Equal(a) {
			t.Errorf("%s: became %v, %v", test.addr, back, err)
		}
		if !transport.IsVeil(a) || !transport.IsVeil(ma.StringCast(test.addr+veilPeer)) || !transport.HasPath(a) {
			t.Errorf("%s isn't taken for a bridge's address", test.addr)
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "addr", v)
		if said := fmt.Sprintf("%v %+v %#v %s", v, v, v, log.String()); strings.Contains(said, veilPath) || strings.Contains(said, "192.0") {
			t.Errorf("an address prints as %s", said)
		}
	}
}

func TestVeilAddressRefused(t *testing.T) {
	const tail = "/tcp/443/tls/certhash/" + veilPin + "/http-path/" + veilPath
	for _, addr := range []string{
		"/ip4/192.0.0.131/tcp/443",
		"/ip4/192.0.0.131/tcp/443/tls",
		"/ip4/192.0.0.131/tcp/443/tls/http-path/" + veilPath,                                           // nothing to check the certificate by
		"/dns4/example.com/tcp/443/tls/sni/other.example/http-path/" + veilPath,                        // whose certificate?
		"/dns4/example.com/tcp/443/tls/sni/example.com/certhash/" + veilPin + "/http-path/" + veilPath, // said twice
		"/ip4/192.0.0.131/tcp/0/tls/certhash/" + veilPin + "/http-path/" + veilPath,
		"/ip4/192.0.0.131/udp/443/tls/certhash/" + veilPin + "/http-path/" + veilPath,
		"/ip4/192.0.0.131/tcp/443/tls/certhash/" + veilPin + "/certhash/" + veilPin + "/http-path/" + veilPath,
		"/ip4/192.0.0.131/tcp/443/tls/certhash/uFCAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/http-path/" + veilPath, // BLAKE3
		"/ip4/192.0.0.131/tcp/443/tls/certhash/" + veilPin + "/sni/example.com/http-path/" + veilPath,                   // order
		"/ip4/192.0.0.131/tcp/443/tls/ws/certhash/" + veilPin + "/http-path/" + veilPath,
		"/dns/example.com" + tail,
		"/dnsaddr/example.com" + tail,
		"/dns4/Example.com" + tail,
		"/dns4/example.com." + tail,
		"/dns4/exa_mple.com" + tail,
		"/dns4/127.1" + tail,
		"/dns4/0x7f000001" + tail,
		"/dns4/2130706433" + tail,
		"/dns4/" + strings.Repeat("a", 64) + ".example" + tail,
		"/ip6/::ffff:192.0.0.131" + tail,
		"/ip6zone/eth0/ip6/fe80::1" + tail,
		"/ip4/192.0.0.131" + tail[:len(tail)-1],
		"/ip4/192.0.0.131" + tail + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAA", // too long
		"/ip4/192.0.0.131" + tail[:len(tail)-1] + "x",               // bits left over
		"/ip4/192.0.0.131" + tail[:len(tail)-1] + "%2F",
		"/ip4/192.0.0.131" + tail + veilPeer + "/p2p-circuit",
		"/ip4/192.0.0.131" + tail + "/http-path/" + veilPath,
	} {
		a, err := ma.NewMultiaddr(addr)
		if err != nil {
			continue // refused before us
		}
		if v, err := transport.ParseVeil(a); err == nil {
			t.Errorf("%s: parsed as %#v", addr, v)
		} else if strings.Contains(err.Error(), veilPath) {
			t.Errorf("%s: the error tells the path: %v", addr, err)
		}
	}
	if !transport.HasPath(ma.StringCast("/ip4/192.0.0.131" + tail + veilPeer + "/p2p-circuit")) {
		t.Error("a path in the middle isn't seen")
	}
}

func TestNewPath(t *testing.T) {
	one, err := transport.NewPath(rand.Reader)
	if err != nil || !transport.ValidPath(one) {
		t.Fatal(one, err)
	}
	if two, _ := transport.NewPath(rand.Reader); one == two {
		t.Error("two paths are the same")
	}
	if _, err := transport.NewPath(bytes.NewReader(make([]byte, 15))); err == nil {
		t.Error("a path of 15 bytes")
	}
}

// FuzzParseVeil wants every address that parses to come back the same bytes.
func FuzzParseVeil(f *testing.F) {
	for _, s := range []string{
		"/ip4/192.0.0.131/tcp/443/tls/sni/example.com/http-path/" + veilPath,
		"/dns4/example.com/tcp/443/tls/certhash/" + veilPin + "/http-path/" + veilPath,
	} {
		f.Add(ma.StringCast(s).Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			return
		}
		v, err := transport.ParseVeil(a)
		if err != nil {
			return
		}
		back, err := v.Multiaddr()
		if err != nil {
			t.Fatalf("%v: %v", a, err)
		}
		if last := a[len(a)-1]; last.Protocol().Code == ma.P_P2P {
			back = back.AppendComponent(&last)
		}
		if !bytes.Equal(back.Bytes(), b) {
			t.Errorf("%v became %v", a, back)
		}
	})
}
