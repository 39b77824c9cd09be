package discovery_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/protocol/lan"
)

// ears runs a LAN on machine 0 that says one packet over and over, and counts
// what it hears.
func ears(t *testing.T, l *nodetest.LAN, answer bool) (radio *discovery.LAN, heard *atomic.Int64) {
	t.Helper()
	heard = new(atomic.Int64)
	radio = discovery.NewLAN(discovery.LANConfig{
		Open:   l.Open(0),
		Packet: func(netip.Addr) []byte { return make([]byte, lan.PacketSize) },
		Heard: func(_ []byte, _ lan.Source, from netip.Addr) bool {
			if from != nodetest.IP(0) {
				heard.Add(1)
			}
			return answer
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = radio.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return radio, heard
}

// TestLANPace holds the times of docs/spec/lan.md, section 4.
func TestLANPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		var all []time.Duration
		l := &nodetest.LAN{Heard: func(netip.Addr, []byte) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, time.Since(began))
		}}
		after := func(d time.Duration) []time.Duration {
			time.Sleep(d)
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(all)
		}
		radio, _ := ears(t, l, false)
		times := after(5 * time.Second)
		want := []time.Duration{0, 300 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}
		if len(times) != len(want) {
			t.Fatalf("it spoke at %v, want %v", times, want)
		}
		for i := range want {
			if times[i] != want[i] {
				t.Errorf("it spoke at %v, want %v", times, want)
			}
		}
		times = after(time.Hour - 5*time.Second)
		if n := len(times) - len(want); n < 80 || n > 240 {
			t.Errorf("it spoke %d times in a quiet hour", n)
		}
		for i := len(want) + 1; i < len(times); i++ {
			if pause := times[i] - times[i-1]; pause < 15*time.Second || pause > 45*time.Second {
				t.Fatalf("a pause of %v", pause)
			}
		}
		before := len(times)
		radio.Announce()
		times = after(5 * time.Second)
		if n := len(times) - before; n < len(want) {
			t.Errorf("with something new to say it spoke %d times in 5 s", n)
		}
	})
}

// TestLANFlood: whoever floods a network costs its machines no more than the
// limits, whether it has one address or many, and answers do not multiply.
func TestLANFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var spoken atomic.Int64
		l := &nodetest.LAN{Heard: func(from netip.Addr, _ []byte) {
			if from == nodetest.IP(0) {
				spoken.Add(1)
			}
		}}
		_, heard := ears(t, l, true)
		time.Sleep(10 * time.Second)
		flood := func(sources, seconds int) int64 {
			before := heard.Load()
			for i := range seconds * 1000 {
				l.Say(nodetest.IP(1+i%sources), make([]byte, lan.PacketSize))
				time.Sleep(time.Millisecond)
			}
			return heard.Load() - before
		}
		if n := flood(1, 60); n > 16+4*60 {
			t.Errorf("listened to %d packets of one source in a minute", n)
		}
		time.Sleep(time.Minute)
		before := spoken.Load()
		if n := flood(5000, 60); n > 128+64*60 {
			t.Errorf("listened to %d packets in a minute", n)
		}
		if n := spoken.Load() - before; n > 600 {
			t.Errorf("answered %d times in a minute", n)
		}
		time.Sleep(10 * time.Minute) // those who have fallen silent are forgotten
		before = heard.Load()
		l.Say(nodetest.IP(1), make([]byte, lan.PacketSize))
		synctest.Wait()
		if heard.Load() == before {
			t.Error("after the flood nobody is heard any more")
		}
		for _, size := range []int{0, lan.PacketSize - 1, lan.PacketSize + 1, 65000} {
			before := heard.Load()
			l.Say(nodetest.IP(1), make([]byte, size))
			synctest.Wait()
			if heard.Load() != before {
				t.Errorf("listened to a packet of %d bytes", size)
			}
		}
	})
}

// narrow is a LAN whose machine is on a small network.
type narrow struct {
	discovery.Link
	networks atomic.Pointer[[]discovery.LocalNetwork]
}

func (n *narrow) Networks() ([]discovery.LocalNetwork, error) { return *n.networks.Load(), nil }

// TestE10_LANSourcesAreNeighbours: only what comes from a network of ours is
// listened to (docs/spec/lan.md, section 3), and a network that comes or goes is
// noticed.
func TestE10_LANSourcesAreNeighbours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(nodetest.LAN)
		link := new(narrow)
		link.networks.Store(&[]discovery.LocalNetwork{
			{Interface: "eth0", Prefix: netip.MustParsePrefix("192.168.1.2/24")},
			{Interface: "eth0", Prefix: netip.MustParsePrefix("fe80::2/64")},
		})
		var last atomic.Pointer[netip.Addr]
		var at atomic.Pointer[[]netip.Addr]
		radio := discovery.NewLAN(discovery.LANConfig{
			Open: func() (_ discovery.Link, err error) {
				link.Link, err = l.Open(0)()
				return link, err
			},
			Packet: func(netip.Addr) []byte { return nil },
			Heard:  func(_ []byte, _ lan.Source, from netip.Addr) bool { last.Store(&from); return false },
			Moved:  func(sources []netip.Addr) { at.Store(&sources) },
		})
		told := func(want ...string) {
			t.Helper()
			var got []string
			if all := at.Load(); all != nil {
				for _, a := range *all {
					got = append(got, a.String())
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("we are said to be at %q, want %q", got, want)
			}
		}
		defer running(t, radio)()
		time.Sleep(time.Second)
		told("192.168.1.2", "fe80::2%eth0")
		hears := func(from string) bool {
			last.Store(nil)
			l.Say(netip.MustParseAddr(from), make([]byte, lan.PacketSize))
			synctest.Wait()
			return last.Load() != nil
		}
		for from, want := range map[string]bool{
			"192.168.1.77": true, "::ffff:192.168.1.78": true, "fe80::9%eth0": true,
			"192.168.2.1": false, "127.0.0.1": false, "8.8.8.8": false, "fe80::9": false, "fe80::9%eth1": false, "2001:db8::1": false, "::1": false,
		} {
			if hears(from) != want {
				t.Errorf("a packet from %s: heard is %v", from, !want)
			}
		}
		link.networks.Store(&[]discovery.LocalNetwork{{Interface: "wlan0", Prefix: netip.MustParsePrefix("10.0.0.2/8")}})
		time.Sleep(5 * time.Second)
		if hears("192.168.1.77") || !hears("10.9.9.9") {
			t.Error("another network was not noticed")
		}
		told("10.0.0.2")
		link.networks.Store(new([]discovery.LocalNetwork))
		time.Sleep(5 * time.Second)
		if _, err := radio.Status(); err != discovery.ErrNoLocalNetwork {
			t.Errorf("without a network the status is %v", err)
		}
		told()
	})
}

// TestLANMovedOnce: where we speak from is told when it changes, and not again at
// every look, nor at every attempt to open what can not be opened.
func TestLANMovedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home := []discovery.LocalNetwork{{Interface: "eth0", Prefix: netip.MustParsePrefix("192.168.1.2/24")}}
		link := new(narrow)
		link.networks.Store(&home)
		var lost atomic.Bool
		var mu sync.Mutex
		var told [][]netip.Addr
		radio := discovery.NewLAN(discovery.LANConfig{
			Open: func() (_ discovery.Link, err error) {
				if lost.Load() {
					return nil, errors.New("the port is taken")
				}
				link.Link, err = new(nodetest.LAN).Open(0)()
				return link, err
			},
			Packet: func(netip.Addr) []byte { return nil },
			Heard:  func([]byte, lan.Source, netip.Addr) bool { return false },
			Moved: func(sources []netip.Addr) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, sources)
			},
		})
		defer running(t, radio)()
		for _, step := range []struct {
			name string
			do   func()
			want int // addresses told, once; -1: nothing is
		}{
			{"at home", func() {}, 1},
			{"the network's prefix is another", func() {
				link.networks.Store(&[]discovery.LocalNetwork{{Interface: "eth0", Prefix: netip.MustParsePrefix("192.168.1.2/16")}})
			}, -1},
			{"without a network", func() { link.networks.Store(new([]discovery.LocalNetwork)) }, 0},
			{"with something new to say there", radio.Announce, -1},
			{"at home again", func() { link.networks.Store(&home) }, 1},
			{"the port is lost", func() { lost.Store(true); _ = link.Close() }, 0},
			{"and cannot be had", func() {}, -1},
			{"the port is back", func() { lost.Store(false) }, 1},
		} {
			mu.Lock()
			told = nil
			mu.Unlock()
			step.do()
			time.Sleep(10 * time.Minute)
			mu.Lock()
			if step.want < 0 && len(told) > 0 || step.want >= 0 && (len(told) != 1 || len(told[0]) != step.want) {
				t.Errorf("%s: told %v in ten minutes, want %d addresses once (-1: nothing)", step.name, told, step.want)
			}
			mu.Unlock()
		}
	})
}

// running runs a radio until stop is called.
func running(t *testing.T, radio *discovery.LAN) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = radio.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}
