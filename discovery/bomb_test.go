package discovery_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

// loopback makes a host on real sockets.
func loopback(t testing.TB, role transport.Role) *transport.Host {
	t.Helper()
	cfg := transport.Config{Role: role, Memory: 64 << 20, Dial: transport.Loopback}
	if role != transport.Errands {
		cfg.Listen = []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0"), ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1")}
	}
	h, err := transport.New(withKey(t, cfg))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// bomb is one frame of 4 MiB that kad-dht alone would accept and decode to two
// million closer peers, each empty.
func bomb() []byte {
	const size = 4<<20 - 64
	return append(binary.AppendUvarint(nil, size), bytes.Repeat([]byte{0x42, 0}, size/2)...)
}

// maxRSS bounds what an attacked process may ever have used.
const maxRSS = 100 << 20

const victimEnv = "KITH_TEST_VICTIM"

// TestE06_ElementBombOnServer: one peer opens 32 streams to a server and sends a
// bomb on each (threats X1: 5.34 GB without the guard).
func TestE06_ElementBombOnServer(t *testing.T) {
	if os.Getenv(victimEnv) != "" {
		serveAsVictim(t)
		return
	}
	v := startVictim(t, "TestE06_ElementBombOnServer", "server")
	h := loopback(t, transport.Errands)
	if err := h.Connect(t.Context(), v.info); err != nil {
		t.Fatal(err)
	}
	frame := bomb()
	var sending sync.WaitGroup
	refused := make(chan struct{}, 32)
	for range 32 {
		sending.Go(func() {
			s, err := h.NewStream(t.Context(), v.info.ID, dhtProtocol)
			if err != nil {
				refused <- struct{}{} // by the limits of the host, which is as good
				return
			}
			if _, err = s.Write(frame); err == nil {
				_, err = s.Read(make([]byte, 1))
			}
			if err != nil && !errors.Is(err, io.EOF) {
				refused <- struct{}{}
			}
		})
	}
	sending.Wait()
	if len(refused) != 32 {
		t.Errorf("%d of 32 streams were reset", len(refused))
	}
	v.check(t)
}

// TestE07_ElementBombOnClient: a client joins through ten servers that answer
// everything with a bomb (threats X2: 1.39 GB without the guard).
func TestE07_ElementBombOnClient(t *testing.T) {
	if os.Getenv(victimEnv) != "" {
		joinAsVictim(t)
		return
	}
	frame := bomb()
	var ways []string
	for range 10 {
		h := loopback(t, transport.Community)
		h.SetStreamHandler(dhtProtocol, func(s network.Stream) {
			if _, err := readMessage(s); err == nil {
				_, _ = s.Write(frame)
			}
			_ = s.Close()
		})
		for _, a := range nodetest.AddrInfo(t, h).Addrs {
			ways = append(ways, fmt.Sprintf("%s/p2p/%s", a, h.ID()))
		}
	}
	v := startVictim(t, "TestE07_ElementBombOnClient", strings.Join(ways, ","))
	v.check(t)
}

type victim struct {
	info  peer.AddrInfo
	stdin io.Closer
	lines *bufio.Scanner
	wait  func() error
}

// startVictim runs the test again in a process of its own and reads its address.
func startVictim(t *testing.T, name, role string) *victim {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+name+"$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), victimEnv+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &victim{stdin: in, lines: bufio.NewScanner(out), wait: cmd.Wait}
	addr := v.line(t, "address ")
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		t.Fatal(err)
	}
	v.info = *info
	return v
}

func (v *victim) line(t *testing.T, prefix string) string {
	t.Helper()
	for v.lines.Scan() {
		if rest, ok := strings.CutPrefix(v.lines.Text(), prefix); ok {
			return rest
		}
	}
	t.Fatalf("the victim died before it printed %q", prefix)
	return ""
}

// check ends the victim and looks at the most memory it ever used.
func (v *victim) check(t *testing.T) {
	t.Helper()
	v.stdin.Close()
	rss, err := strconv.ParseInt(v.line(t, "peak "), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.wait(); err != nil {
		t.Errorf("the victim ended with %v", err)
	}
	t.Logf("peak RSS of the victim: %.1f MiB", float64(rss)/(1<<20))
	if rss > maxRSS {
		t.Errorf("the victim used %d MiB, want less than %d", rss>>20, maxRSS>>20)
	}
}

func serveAsVictim(t *testing.T) {
	h := loopback(t, transport.Community)
	run(t, h, discovery.Config{Host: h, Server: true})
	printAddress(t, h)
	_, _ = io.Copy(io.Discard, os.Stdin)
	printPeak(t)
}

func joinAsVictim(t *testing.T) {
	h := loopback(t, transport.Errands)
	var ways []peer.AddrInfo
	for way := range strings.SplitSeq(os.Getenv(victimEnv), ",") {
		info, err := peer.AddrInfoFromString(way)
		if err != nil {
			t.Fatal(err)
		}
		ways = append(ways, *info)
	}
	for _, info := range ways { // as if it had been there before
		if err := h.Connect(t.Context(), info); err != nil {
			t.Fatal(err)
		}
	}
	m := run(t, h, discovery.Config{Host: h, Bootstrap: ways})
	points := person(t, time.Now())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := m.Find(ctx, points[:]); !errors.Is(err, discovery.ErrNoPeers) {
		t.Errorf("find among bombs: %v", err)
	}
	fmt.Printf("\naddress /ip4/127.0.0.1/tcp/1/p2p/%s\n", h.ID())
	printPeak(t)
}

func printAddress(t *testing.T, h *transport.Host) {
	info := nodetest.AddrInfo(t, h)
	fmt.Printf("\naddress %s/p2p/%s\n", info.Addrs[0], info.ID)
}

// printPeak prints VmHWM, the most memory this process ever had.
func printPeak(t *testing.T) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("no /proc here")
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("peak %d\n", kib<<10)
		}
	}
}

// TestRealSockets: the same over TCP and QUIC on this machine.
func TestRealSockets(t *testing.T) {
	var servers []*member
	var ways []peer.AddrInfo
	for range 3 {
		h := loopback(t, transport.Community)
		servers = append(servers, run(t, h, discovery.Config{Host: h, Server: true, Bootstrap: ways}))
		ways = append(ways, nodetest.AddrInfo(t, h))
	}
	people := func() *member {
		h := loopback(t, transport.Errands)
		return run(t, h, discovery.Config{Host: h, Bootstrap: ways})
	}
	alice, bob := people(), people()
	points := person(t, time.Now())
	for _, p := range alice.announce(t, points[:], 3) {
		if p.Confirmed == 0 {
			t.Errorf("published %+v", p)
		}
	}
	found, took := bob.find(t, points[:])
	if found.Seq != 3 {
		t.Errorf("found %+v", found)
	}
	t.Logf("found after %v", took)
	for _, s := range servers {
		if s.Status().Mode != discovery.Server {
			t.Error("a server is not in server mode")
		}
	}
}
