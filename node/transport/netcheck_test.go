package transport_test

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

// TestProbes: against a real community node every probe passes; where nobody
// listens, and where somebody else does, they say so.
func TestProbes(t *testing.T) {
	h := realHost(t, transport.Community, tcpLoopback, quicLoopback)
	f := transport.Prober{Random: true}.Node(t.Context(), nodetest.AddrInfo(t, h).Addrs)
	for _, p := range []transport.Probe{
		transport.ProbeTCP, transport.ProbeUDP, transport.ProbeQUIC, transport.ProbeQUICOurs,
		transport.ProbePlain, transport.ProbeLong, transport.ProbeRandom,
	} {
		if f[p] != transport.Passed {
			t.Errorf("probe %d of a community node: %v", p, f[p])
		}
	}

	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"))
			_ = c.Close()
		}
	}()
	address := func(l net.Listener) []ma.Multiaddr {
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/" + port)}
	}
	if f := (transport.Prober{}).Node(t.Context(), address(other)); f[transport.ProbeTCP] != transport.Passed ||
		!slices.Contains([]transport.Outcome{transport.Altered, transport.Reset}, f[transport.ProbePlain]) {
		t.Errorf("somebody else: %v", f)
	}
	other.Close()
	if f := (transport.Prober{}).Node(t.Context(), address(other)); f[transport.ProbeTCP] != transport.Refused || f[transport.ProbePlain] != transport.NotTried {
		t.Errorf("nobody: %v", f)
	}
}

// TestProbesGoThroughTheProxy: with a proxy nothing goes past it.
func TestProbesGoThroughTheProxy(t *testing.T) {
	h := realHost(t, transport.Community, tcpLoopback, quicLoopback)
	dialled := make(chan string, 100)
	f := transport.Prober{DialTCP: func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled <- address
		return new(net.Dialer).DialContext(ctx, network, address)
	}}.Node(t.Context(), nodetest.AddrInfo(t, h).Addrs)
	if len(dialled) == 0 || f[transport.ProbeTCP] != transport.Passed {
		t.Errorf("through the proxy: %v, %d dials", f, len(dialled))
	}
	for _, p := range []transport.Probe{transport.ProbeUDP, transport.ProbeQUIC, transport.ProbeQUICOurs} {
		if f[p] != transport.NotTried {
			t.Errorf("probe %d went past the proxy", p)
		}
	}
}

// TestProbesEnd: a node that answers everything, slowly, holds nobody up.
func TestProbesEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				line := make([]byte, 64)
				for answer := "/multistream/1.0.0\n"; ; answer = "na\n" {
					if _, err := c.Read(line); err != nil {
						return
					}
					time.Sleep(200 * time.Millisecond)
					if _, err := c.Write(append([]byte{byte(len(answer))}, answer...)); err != nil {
						return
					}
				}
			}()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	start := time.Now()
	f := transport.Prober{}.Node(ctx, []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/" + port)})
	if took := time.Since(start); took > 4*time.Second || f[transport.ProbePlain] != transport.Passed || f[transport.ProbeLong] == transport.Passed {
		t.Errorf("after %v: %v", took, f)
	}
}
