package transport

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// fullConn is a TCP connection whose network takes no more after some bytes: what
// is written then waits, as it does when the system's buffer is full.
type fullConn struct {
	net.Conn
	mu     sync.Mutex
	left   int
	closed chan struct{}
	once   sync.Once
}

func (c *fullConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.left -= len(p)
	full := c.left < 0
	c.mu.Unlock()
	if full {
		<-c.closed
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *fullConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestVeilBlockedWrite: a connection into which nothing can be written any more is
// found out like every dead one, and meanwhile nobody waits for it.
func TestVeilBlockedWrite(t *testing.T) {
	b := newTestBridge(t)
	go b.echo()
	first := true
	var mu sync.Mutex
	c := dialTest(t, b, VeilClient{DialTCP: func(ctx context.Context, network, address string) (net.Conn, error) {
		raw, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		left := 1 << 30
		if first {
			first, left = false, 64<<10
		}
		return &fullConn{Conn: raw, left: left, closed: make(chan struct{})}, nil
	}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		echoed(t, c, randomBytes(300<<10))
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the stream hangs")
	}
}
