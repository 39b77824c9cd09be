package transport

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// counted counts the bytes of TCP connections, both ways.
type counted struct{ bytes atomic.Int64 }

func (c *counted) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	return &countedConn{conn, c}, err
}

type countedConn struct {
	net.Conn
	total *counted
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.total.bytes.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.total.bytes.Add(int64(n))
	return n, err
}

// plainTLS is the floor: the same bytes over TCP and TLS, echoed.
func plainTLS(b *testing.B, count *counted) net.Conn {
	b.Helper()
	cert := selfSigned(b, "cats.example")
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*cert}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	raw, err := count.dial(b.Context(), "tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	b.Cleanup(func() { c.Close() })
	return c
}

// BenchmarkVeil compares the veil with TCP and TLS in the same run: the time of
// 1 MiB there and back, and the time and the bytes on the wire of a text of 1 KiB
// there and an answer as long.
func BenchmarkVeil(b *testing.B) {
	bridge := newTestBridge(b)
	go bridge.echo()
	var veil, floor counted
	hidden := dialTest(b, bridge, VeilClient{DialTCP: veil.dial})
	plain := plainTLS(b, &floor)

	// measure returns the time and the bytes of one exchange of n bytes.
	measure := func(b *testing.B, c net.Conn, count *counted, n int) (time.Duration, float64) {
		what := randomBytes(n)
		echoed(b, c, what)
		before, start := count.bytes.Load(), time.Now()
		for range b.N {
			echoed(b, c, what)
		}
		return time.Since(start), float64(count.bytes.Load()-before) / float64(b.N)
	}
	for _, size := range []struct {
		name string
		n    int
	}{{"text", 1 << 10}, {"MiB", 1 << 20}} {
		b.Run(size.name, func(b *testing.B) {
			took, bytes := measure(b, hidden, &veil, size.n)
			floorTook, floorBytes := measure(b, plain, &floor, size.n)
			b.ReportMetric(float64(took)/float64(floorTook), "time/tls")
			b.ReportMetric(bytes/floorBytes, "bytes/tls")
			b.ReportMetric(bytes, "wire-B/op")
		})
	}
}
