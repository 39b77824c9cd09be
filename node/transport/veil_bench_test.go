//go:build unix

package transport

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"syscall"
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

// cpu is what this process has used of the processors.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkVeil compares the veil with TCP and TLS in the same run: the time and the
// CPU of 1 MiB there and back, the same and the bytes on the wire of a text of 1 KiB
// there and an answer as long, both ends in one process; and what a minute of silence
// costs, for which TCP and TLS send nothing.
func BenchmarkVeil(b *testing.B) {
	bridge := newTestBridge(b)
	go bridge.echo()
	var veil, floor counted
	hidden := dialTest(b, bridge, VeilClient{DialTCP: veil.dial})
	plain := plainTLS(b, &floor)

	// measure returns the time, the CPU and the bytes of one exchange of n bytes.
	measure := func(b *testing.B, c net.Conn, count *counted, n int) (took, used time.Duration, bytes float64) {
		what := randomBytes(n)
		echoed(b, c, what)
		before, start, cpuBefore := count.bytes.Load(), time.Now(), cpu(b)
		for range b.N {
			echoed(b, c, what)
		}
		return time.Since(start), cpu(b) - cpuBefore, float64(count.bytes.Load()-before) / float64(b.N)
	}
	for _, size := range []struct {
		name string
		n    int
	}{{"text", 1 << 10}, {"MiB", 1 << 20}} {
		b.Run(size.name, func(b *testing.B) {
			took, used, bytes := measure(b, hidden, &veil, size.n)
			floorTook, floorUsed, floorBytes := measure(b, plain, &floor, size.n)
			b.ReportMetric(float64(took)/float64(floorTook), "time/tls")
			b.ReportMetric(float64(used)/float64(floorUsed), "cpu/tls")
			b.ReportMetric(bytes/floorBytes, "bytes/tls")
			b.ReportMetric(bytes, "wire-B/op")
		})
	}
	b.Run("idle", func(b *testing.B) {
		bytes, used := veil.bytes.Load(), cpu(b)
		for range b.N { // once: a minute is enough for the testing package
			timer := time.NewTimer(time.Minute)
			select {
			case <-timer.C:
			case <-hidden.done:
				b.Fatal("the stream has ended")
			}
		}
		b.ReportMetric(float64(veil.bytes.Load()-bytes)/float64(b.N), "wire-B/min")
		b.ReportMetric((cpu(b)-used).Seconds()*1000/float64(b.N), "cpu-ms/min")
	})
}
