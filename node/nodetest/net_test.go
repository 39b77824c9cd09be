package nodetest

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/kith-im/kith/node/transport"
)

const echo = "/echo"

// hosts makes count community hosts on machines 0 and up that echo.
func hosts(t *testing.T, n *Network, count int) []*transport.Host {
	hs := make([]*transport.Host, count)
	for i := range hs {
		hs[i] = n.Host(t, transport.Config{Role: transport.Community}, IP(i))
		hs[i].SetStreamHandler(echo, func(s network.Stream) {
			defer s.Close()
			io.Copy(s, s)
		})
	}
	return hs
}

func connect(t *testing.T, from, to *transport.Host) {
	t.Helper()
	if err := from.Connect(t.Context(), AddrInfo(t, to)); err != nil {
		t.Fatal(err)
	}
}

// roundTrip sends one message over s and reports how long its echo took.
func roundTrip(s network.Stream) (time.Duration, error) {
	start := time.Now()
	if _, err := s.Write([]byte("hello")); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(s, make([]byte, 5))
	return time.Since(start), err
}

func open(t *testing.T, from *transport.Host, to peer.ID) network.Stream {
	t.Helper()
	s, err := from.NewStream(t.Context(), to, echo)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMesh(t *testing.T) {
	for _, count := range []int{3, 20} {
		Bubble(t, 1, func(t *testing.T, n *Network) {
			n.SetLatency(20 * time.Millisecond)
			hs := hosts(t, n, count)
			for i, h := range hs {
				for _, to := range []int{(i + 1) % count, (i + 2) % count} {
					connect(t, h, hs[to])
					if _, err := roundTrip(open(t, h, hs[to].ID())); err != nil {
						t.Fatal(err)
					}
				}
			}
			for i, h := range hs {
				next := hs[(i+1)%count]
				agent, err := h.Peerstore().Get(next.ID(), "AgentVersion")
				if err != nil || agent != "go-libp2p" {
					t.Errorf("identify told %v, %v", agent, err)
				}
			}
		})
	}
}

func TestLatency(t *testing.T) {
	Bubble(t, 1, func(t *testing.T, n *Network) {
		n.SetLatency(50 * time.Millisecond)
		hs := hosts(t, n, 2)
		start := time.Now()
		connect(t, hs[0], hs[1])
		// TCP, the choice of TLS, and TLS, whose last flight needs no answer; then identify.
		if took := time.Since(start); took < 300*time.Millisecond || took > 600*time.Millisecond {
			t.Errorf("connecting took %v", took)
		}
		s := open(t, hs[0], hs[1].ID())
		if _, err := roundTrip(s); err != nil {
			t.Fatal(err)
		}
		if took, err := roundTrip(s); err != nil || took != 100*time.Millisecond {
			t.Errorf("round trip took %v, %v; want exactly 100ms", took, err)
		}
	})
}

func TestLoss(t *testing.T) {
	Bubble(t, 7, func(t *testing.T, n *Network) {
		n.SetLatency(10 * time.Millisecond)
		hs := hosts(t, n, 2)
		connect(t, hs[0], hs[1])
		s := open(t, hs[0], hs[1].ID())
		n.SetLoss(0.3)
		var slow int
		for range 50 {
			took, err := roundTrip(s)
			if err != nil {
				t.Fatal(err)
			}
			if took >= retransmit {
				slow++
			}
		}
		if slow < 10 || slow > 45 {
			t.Errorf("%d of 50 round trips met a loss of 30 %% each way", slow)
		}
	})
}

func TestPartitionAndHeal(t *testing.T) {
	Bubble(t, 1, func(t *testing.T, n *Network) {
		n.SetLatency(10 * time.Millisecond)
		hs := hosts(t, n, 3)
		connect(t, hs[0], hs[1])
		connect(t, hs[0], hs[2])
		near, far := open(t, hs[0], hs[1].ID()), open(t, hs[0], hs[2].ID())
		n.Partition([]netip.Addr{IP(0), IP(1)}, []netip.Addr{IP(2)})
		if _, err := roundTrip(near); err != nil {
			t.Errorf("inside a group: %v", err)
		}
		time.AfterFunc(5*time.Second, n.Heal)
		took, err := roundTrip(far)
		if err != nil || took < 5*time.Second || took > 6*time.Second {
			t.Errorf("across a partition of 5s: %v, %v", took, err)
		}

		// A partition that lasts ends connections and then dials.
		n.Partition([]netip.Addr{IP(0), IP(1)}, []netip.Addr{IP(2)})
		if _, err := roundTrip(far); err == nil {
			t.Error("a stream outlived a partition without end")
		}
		start := time.Now()
		if err := hs[0].Connect(t.Context(), AddrInfo(t, hs[2])); err == nil {
			t.Error("dialled across a partition")
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("the dial gave up after %v", took)
		}
		n.Heal()
		time.Sleep(time.Minute) // the swarm backs off from an address that failed
		connect(t, hs[0], hs[2])
	})
}

func TestBlackhole(t *testing.T) {
	Bubble(t, 1, func(t *testing.T, n *Network) {
		hs := hosts(t, n, 2)
		n.Blackhole(IP(1))
		if err := hs[0].Connect(t.Context(), AddrInfo(t, hs[1])); err == nil {
			t.Fatal("connected into a black hole")
		}
		n.Heal()
		time.Sleep(time.Minute)
		connect(t, hs[0], hs[1])
	})
}

func TestKillAndRestart(t *testing.T) {
	Bubble(t, 1, func(t *testing.T, n *Network) {
		hs := hosts(t, n, 2)
		connect(t, hs[0], hs[1])
		s := open(t, hs[0], hs[1].ID())
		if _, err := roundTrip(s); err != nil {
			t.Fatal(err)
		}
		n.Kill(IP(1))
		if _, err := roundTrip(s); err == nil {
			t.Error("a stream outlived its peer")
		}
		if err := hs[0].Connect(t.Context(), AddrInfo(t, hs[1])); err == nil {
			t.Error("connected to a dead machine")
		}
		time.Sleep(time.Minute)
		again := n.Host(t, transport.Config{}, IP(1))
		connect(t, hs[0], again)
	})
}

// TestWrongIdentity shows that identities are verified on the simulated wire.
func TestWrongIdentity(t *testing.T) {
	Bubble(t, 1, func(t *testing.T, n *Network) {
		hs := hosts(t, n, 3)
		claim := AddrInfo(t, hs[1])
		claim.ID = hs[2].ID()
		if err := hs[0].Connect(t.Context(), claim); err == nil {
			t.Error("a host passed for another")
		}
	})
}

// TestF08_NoGoroutineLeft runs outside a bubble, in real time, where nothing
// but our own care ends goroutines.
func TestF08_NoGoroutineLeft(t *testing.T) {
	before := goleak.IgnoreCurrent()
	n := NewNetwork(1)
	hs := hosts(t, n, 3)
	for _, to := range hs[1:] {
		connect(t, hs[0], to)
		s := open(t, hs[0], to.ID())
		if _, err := roundTrip(s); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	n.Blackhole(IP(2))
	if err := hs[1].Connect(ctx, AddrInfo(t, hs[2])); err == nil {
		t.Error("connected into a black hole")
	}
	for _, h := range hs {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

func BenchmarkMesh20(b *testing.B) {
	for b.Loop() {
		n := NewNetwork(1)
		var hs []*transport.Host
		for i := range 20 {
			hs = append(hs, n.Host(b, transport.Config{}, IP(i)))
		}
		for i, h := range hs {
			for j := range 3 {
				if err := h.Connect(b.Context(), AddrInfo(b, hs[(i+j+1)%len(hs)])); err != nil {
					b.Fatal(err)
				}
			}
		}
		for _, h := range hs {
			h.Close()
		}
	}
}
