package node

import (
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

const someNode = "/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"

// TestTellable follows docs/spec/errand.md, section 4: mail is carried to a peer id
// after at most one IP address and port.
func TestTellable(t *testing.T) {
	for address, want := range map[string]bool{
		someNode:                           true,
		"/ip4/8.8.8.8/tcp/4001" + someNode: true,
		"/ip6/2a00::1/udp/4001/quic-v1" + someNode:                                              true,
		"/dns4/node.example/tcp/4001" + someNode:                                                false,
		"/dnsaddr/node.example" + someNode:                                                      false,
		"/ip4/8.8.8.8/tcp/4001" + someNode + "/p2p-circuit" + someNode:                          false,
		"/ip4/8.8.8.8/tcp/443/tls/sni/cats.example/http-path/AAECAwQFBgcICQoLDA0ODw" + someNode: false,
		"/ip4/0.0.0.0/tcp/4001" + someNode:                                                      false,
	} {
		info, err := toldInfo(ma.StringCast(address).Bytes())
		if got := err == nil && tellable(info); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
}
