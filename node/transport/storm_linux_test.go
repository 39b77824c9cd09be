package transport_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

// TestF03_StreamStorm opens and resets streams as fast as one peer can: the storm
// is cut off at its beginning, costs little, and others are served.
func TestF03_StreamStorm(t *testing.T) {
	server := realHost(t, transport.Community, tcpLoopback)
	attacker, other := realHost(t, transport.Errands), realHost(t, transport.Errands)
	for _, h := range []*transport.Host{attacker, other} {
		if err := h.Connect(t.Context(), nodetest.AddrInfo(t, server)); err != nil {
			t.Fatal(err)
		}
	}
	var opened int
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for ctx.Err() == nil && opened < 100_000 {
		conns := attacker.Network().ConnsToPeer(server.ID())
		if len(conns) == 0 {
			break
		}
		s, err := conns[0].NewStream(ctx)
		if err != nil {
			break
		}
		opened++
		_, _ = s.Write([]byte{1})
		_ = s.Reset()
	}
	if opened >= 100_000 || len(server.Network().ConnsToPeer(attacker.ID())) > 0 && ctx.Err() != nil {
		t.Errorf("after %d streams opened and reset the attacker is still connected", opened)
	}
	if err := attacker.Connect(t.Context(), nodetest.AddrInfo(t, server)); err == nil {
		if err := pingOnce(t, attacker, server.ID()); err == nil {
			t.Error("the attacker is served again at once")
		}
	}
	if err := pingOnce(t, other, server.ID()); err != nil {
		t.Errorf("others are not served: %v", err)
	}

	// At 100,000 a minute, coming back ten times a second: attacker and server are
	// one process here, and together use less than the server alone may.
	const storm = 3 * time.Second
	began, used := time.Now(), cpuTime(t)
	every := time.NewTicker(time.Minute / 100_000)
	defer every.Stop()
	tried := time.Now()
	for time.Since(began) < storm {
		<-every.C
		conns := attacker.Network().ConnsToPeer(server.ID())
		if len(conns) == 0 {
			if time.Since(tried) > 100*time.Millisecond {
				tried = time.Now()
				_ = attacker.Connect(t.Context(), nodetest.AddrInfo(t, server))
			}
			continue
		}
		if s, err := conns[0].NewStream(t.Context()); err == nil {
			_ = s.Reset()
		}
	}
	used = cpuTime(t) - used
	t.Logf("%d streams before the first end; then %v of CPU in %v", opened, used, storm)
	if used > storm*30/100 {
		t.Errorf("the storm costs %v of CPU in %v", used, storm)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
