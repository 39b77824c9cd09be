package transport_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/quic-go/quic-go"

	"github.com/kith-im/kith/node/transport"
)

// TestF15_Amplification sends the beginning of a QUIC handshake from an address
// that never answers, as one does who forges a victim's: it gets no more than three
// times what it sent (RFC 9000, section 8.1). quic-go stops once it has reached that,
// so the datagram that reaches it may go beyond. Under load it gets less.
func TestF15_Amplification(t *testing.T) {
	h := realHost(t, transport.Community, quicLoopback)
	addrs, err := h.ListenAddrs()
	if err != nil {
		t.Fatal(err)
	}
	_, address, err := manet.DialArgs(addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	to, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	listen := func() net.PacketConn {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}

	// What an honest client begins with, caught before it gets anywhere.
	sink := listen()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	begin := func() {
		_, _ = quic.DialAddr(ctx, sink.LocalAddr().String(), &tls.Config{
			InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"libp2p"},
		}, nil)
	}
	go begin()
	receive := func(c net.PacketConn, until time.Duration) (packets [][]byte, bytes int) {
		if err := c.SetReadDeadline(time.Now().Add(until)); err != nil {
			t.Fatal(err)
		}
		for {
			buf := make([]byte, 2048)
			n, _, err := c.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return packets, bytes
			}
			if err != nil {
				t.Fatal(err)
			}
			packets, bytes = append(packets, buf[:n]), bytes+n
		}
	}
	first, size := receive(sink, 150*time.Millisecond)
	if len(first) == 0 {
		t.Fatal("the client says nothing")
	}

	forged := listen()
	for _, p := range first {
		if _, err := forged.WriteTo(p, to); err != nil {
			t.Fatal(err)
		}
	}
	_, got := receive(forged, 3*time.Second)
	t.Logf("%d bytes in %d datagrams were answered by %d", size, len(first), got)
	const datagram = 1452 // the longest that quic-go sends at first over IPv4
	if got == 0 || got > 3*size+datagram {
		t.Errorf("%d bytes were answered by %d, want some and at most %d", size, got, 3*size+datagram)
	}

	// Of many that begin and never go on, those who come late have to show first that
	// the address is theirs: they get a Retry, or nothing, and no handshake.
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	const many = 40
	for range many {
		go begin()
	}
	all, _ := receive(sink, time.Second)
	var flood []net.PacketConn
	begun := make(map[string]bool)
	for _, p := range all {
		if id := string(p[6 : 6+p[5]]); !begun[id] { // the connection's (RFC 9000, section 17.2)
			begun[id] = true
			c := listen()
			flood = append(flood, c)
			if _, err := c.WriteTo(p, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(flood) < many {
		t.Fatalf("%d handshakes of %d were begun", len(flood), many)
	}
	const longRetry = 0b1111
	retries := 0
	wait := time.Second // for the first; then the others have their answers
	for i, c := range flood {
		answer, got := receive(c, wait)
		wait = 20 * time.Millisecond
		retry := len(answer) == 1 && answer[0][0]>>4 == longRetry
		if retry {
			retries++
		}
		if got > len(all[0]) || i >= many*3/4 && len(answer) > 0 && !retry {
			t.Errorf("number %d was answered by %d bytes in %d datagrams", i, got, len(answer))
		}
	}
	if retries == 0 {
		t.Error("nobody had to show that an address is theirs")
	}
}
