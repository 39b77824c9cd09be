package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	libp2p "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sys/unix"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

// What two daemons in processes of their own do end to end, beside the floors
// under it, taken in the same run: commits of the same store, and round trips
// of a bare libp2p stream.

const (
	benchTexts  = 10_000 // sent at once
	benchSize   = 100    // bytes of a text
	benchSingle = 500    // sent one after another
)

// BenchmarkBatch sends 10,000 texts of 100 bytes by kith send --stdin, and
// counts until the last receipt.
func BenchmarkBatch(b *testing.B) {
	n, a, other, wire := benchPair(b)
	single, group := commits(b, n.dir)
	trip := roundTrip(b)
	var lines strings.Builder
	for i := range benchTexts {
		fmt.Fprintf(&lines, "%-*d.\n", benchSize-1, i)
	}
	var took time.Duration
	var bytes, cpuA, cpuB float64
	rounds := 0
	for b.Loop() {
		rounds++
		before, cpu0, cpu1 := wire(), a.cpu(), other.cpu()
		began := time.Now()
		code, _, stderr := cli(b, lines.String(), "--home", a.dir, "send", "ben", "--stdin", "--wait", "delivered", "-q", "--timeout", "120s")
		if code != exitOK {
			b.Fatalf("exit %d: %s", code, stderr)
		}
		took += time.Since(began)
		bytes += wire() - before
		cpuA += a.cpu() - cpu0
		cpuB += other.cpu() - cpu1
	}
	got := other.read("ann")[2:]
	if len(got) != rounds*benchTexts {
		b.Fatalf("%d texts arrived, want %d", len(got), rounds*benchTexts)
	}
	for i, m := range got {
		if want := fmt.Sprintf("%-*d.", benchSize-1, i%benchTexts); m.Text != want {
			b.Fatalf("text %d is %q, want %q", i, m.Text, want)
		}
	}
	texts := float64(rounds * benchTexts)
	rate := texts / took.Seconds()
	b.ReportMetric(rate, "texts/s")
	b.ReportMetric(cpuA/texts*1e6, "sender-cpu-µs/text")
	b.ReportMetric(cpuB/texts*1e6, "recipient-cpu-µs/text")
	b.ReportMetric(a.memory("VmHWM"), "sender-peak-MB")
	b.ReportMetric(other.memory("VmHWM"), "recipient-peak-MB")
	if bytes > 0 {
		b.ReportMetric(bytes/texts, "wire-B/text")
	}
	b.ReportMetric(group, "floor-grouped-commits/s")
	b.ReportMetric(single, "floor-commits/s")
	b.ReportMetric(1/trip.Seconds(), "floor-trips/s")
	b.ReportMetric(rate/group, "texts/grouped-commit")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSequential sends one text after another, each once the one before
// was delivered.
func BenchmarkSequential(b *testing.B) {
	n, a, other, _ := benchPair(b)
	single, _ := commits(b, n.dir)
	trip := roundTrip(b)
	client := api.NewClient(a.ready.API)
	defer client.Close()
	status, err := client.Send(b.Context(), &apiv1.SendRequest{Conversation: "ben", Texts: []string{"first"}})
	if err != nil {
		b.Fatal(err)
	}
	l := watchLedger(b.Context(), client, status.After)
	defer l.stop()
	if err := l.wait(b.Context(), status.Messages[0], "delivered"); err != nil {
		b.Fatal(err)
	}
	text := strings.Repeat("x", benchSize)
	var times []time.Duration
	cpuA, cpuB := a.cpu(), other.cpu()
	for b.Loop() {
		for range benchSingle {
			began := time.Now()
			res, err := client.Send(b.Context(), &apiv1.SendRequest{Conversation: "ben", Texts: []string{text}})
			if err != nil {
				b.Fatal(err)
			}
			if err := l.wait(b.Context(), res.Messages[0], "delivered"); err != nil {
				b.Fatal(err)
			}
			times = append(times, time.Since(began))
		}
	}
	total := time.Duration(0)
	for _, d := range times {
		total += d
	}
	slices.Sort(times)
	p50 := times[len(times)/2]
	commit := time.Duration(float64(time.Second) / single)
	floor := 2*commit + trip
	texts := float64(len(times))
	b.ReportMetric(texts/total.Seconds(), "texts/s")
	b.ReportMetric((a.cpu()-cpuA)/texts*1e6, "sender-cpu-µs/text")
	b.ReportMetric((other.cpu()-cpuB)/texts*1e6, "recipient-cpu-µs/text")
	b.ReportMetric(milliseconds(p50), "p50-ms")
	b.ReportMetric(milliseconds(times[len(times)*95/100]), "p95-ms")
	b.ReportMetric(milliseconds(commit), "floor-commit-ms")
	b.ReportMetric(milliseconds(trip), "floor-trip-ms")
	b.ReportMetric(float64(p50)/float64(floor), "p50/floor") // aim: 3
	b.ReportMetric(0, "ns/op")
}

// BenchmarkStart measures from exec to ready, with an account and a contact.
func BenchmarkStart(b *testing.B) {
	_, a, _, _ := benchPair(b)
	var times []time.Duration
	for b.Loop() {
		for range 10 {
			a.kill()
			a.up()
			times = append(times, a.took)
		}
	}
	slices.Sort(times)
	b.ReportMetric(milliseconds(times[len(times)/2]), "p50-ms")
	b.ReportMetric(milliseconds(times[len(times)-1]), "max-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdle leaves two contacts alone for KITH_TEST_IDLE, else 10 s: the
// figures of the README are of five minutes.
func BenchmarkIdle(b *testing.B) {
	idle := 10 * time.Second
	if s := os.Getenv("KITH_TEST_IDLE"); s != "" {
		var err error
		if idle, err = time.ParseDuration(s); err != nil {
			b.Fatal(err)
		}
	}
	n, a, _, wire := benchPair(b)
	for b.Loop() {
		user, server, bytes := a.cpu(), n.node.cpu(), wire()
		timer := time.NewTimer(idle)
		<-timer.C
		b.ReportMetric((a.cpu()-user)/idle.Seconds()*100, "user-cpu-%")
		b.ReportMetric((n.node.cpu()-server)/idle.Seconds()*100, "community-cpu-%")
		b.ReportMetric((wire()-bytes)/idle.Seconds(), "wire-B/s")
	}
	b.ReportMetric(a.memory("VmRSS"), "user-rss-MB")
	b.ReportMetric(n.node.memory("VmRSS"), "community-rss-MB")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBinary weighs what make build builds.
func BenchmarkBinary(b *testing.B) {
	for b.Loop() {
		out := filepath.Join(b.TempDir(), "kith")
		cmd := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, text)
		}
		info, err := os.Stat(out)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.Size())/1e6, "MB")
	}
	b.ReportMetric(0, "ns/op")
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// benchPair starts two contacts and a community node, if it may in a network
// of their own: its loopback device then counts what they say to each other.
func benchPair(b *testing.B) (n *network, ann, ben *home, wire func() float64) {
	b.Helper()
	enter, wire := ownNetwork(b)
	n = &network{t: b, dir: shortDir(b), calm: true, enter: enter}
	n.node = n.home("n", "--role", "community", "--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1")
	n.node.up()
	ann, ben = n.pair("ann", "ben")
	return n, ann, ben, wire
}

// ownNetwork returns what runs a function inside a new network namespace, and
// what counts the bytes that its loopback device has carried, headers
// included. Where that is not allowed the function runs as it is and nothing
// is counted.
func ownNetwork(b testing.TB) (enter func(func()), wire func() float64) {
	b.Helper()
	calls, made := make(chan func()), make(chan error)
	go func() {
		// The thread ends with this goroutine, and the namespace with its last
		// process.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = loopbackUp()
		}
		made <- err
		if err == nil {
			for f := range calls {
				f()
			}
		}
	}()
	if err := <-made; err != nil {
		b.Logf("bytes on the wire are not counted: no network namespace: %v", err)
		return func(f func()) { f() }, func() float64 { return 0 }
	}
	b.Cleanup(func() { close(calls) })
	enter = func(f func()) {
		done := make(chan struct{})
		calls <- func() { defer close(done); f() }
		<-done
	}
	return enter, func() (sent float64) {
		enter(func() {
			table, err := os.ReadFile("/proc/thread-self/net/dev")
			if err != nil {
				b.Error(err)
				return
			}
			for _, line := range strings.Split(string(table), "\n") {
				if name, numbers, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "lo" {
					if f := strings.Fields(numbers); len(f) > 8 {
						sent, _ = strconv.ParseFloat(f[8], 64)
					}
				}
			}
		})
		return sent
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// commits is how many commits a second the same encrypted store makes of one
// row of an envelope's size each: one after another, and from 64 at a time.
func commits(b *testing.B, dir string) (single, group float64) {
	b.Helper()
	st, err := store.Open(store.Options{Dir: filepath.Join(dir, "floor")})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	row := make([]byte, 1024)
	rand.Read(row)
	var count atomic.Int64
	rate := func(writers int) float64 {
		const long = time.Second
		ctx, stop := context.WithTimeout(b.Context(), long)
		defer stop()
		first, began := count.Load(), time.Now()
		var writing sync.WaitGroup
		for range writers {
			writing.Go(func() {
				for ctx.Err() == nil {
					key := strconv.FormatInt(count.Add(1), 10)
					if err := st.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.SetMeta(key, row) }); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		writing.Wait()
		return float64(count.Load()-first) / time.Since(began).Seconds()
	}
	return rate(1), rate(64)
}

// roundTrip is the median time that an envelope takes there and back on a bare
// libp2p stream between two hosts as kith makes them.
func roundTrip(b *testing.B) time.Duration {
	b.Helper()
	host := func() *transport.Host {
		key, err := transport.NewKey(rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		h, err := transport.New(transport.Config{
			Key: key, Role: transport.Contacts, Memory: transport.UserMemory / 2, Dial: transport.Loopback,
			Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1")},
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { h.Close() })
		return h
	}
	const protocol = "/floor"
	here, there := host(), host()
	there.SetStreamHandler(protocol, func(s libp2p.Stream) {
		_, _ = io.Copy(s, s) // until the other side ends it
		s.Close()
	})
	addrs, err := there.ListenAddrs()
	if err != nil {
		b.Fatal(err)
	}
	if err := here.Connect(b.Context(), peer.AddrInfo{ID: there.ID(), Addrs: addrs}); err != nil {
		b.Fatal(err)
	}
	s, err := here.NewStream(b.Context(), there.ID(), protocol)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Reset()
	envelope := make([]byte, 1024)
	times := make([]time.Duration, 2000)
	for i := range times {
		began := time.Now()
		if _, err := s.Write(envelope); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, envelope); err != nil {
			b.Fatal(err)
		}
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	return times[len(times)/2]
}

// cpu is how many seconds of processor time the daemon has taken.
func (h *home) cpu() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name before may hold anything
	f := strings.Fields(rest)
	ticks := 0.0
	for _, field := range f[11:13] {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			h.t.Fatal(err)
		}
		ticks += n
	}
	return ticks / 100 // USER_HZ, the same on every Linux
}

// memory is a line of the daemon's /proc status, in MB.
func (h *home) memory(line string) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), line+":")
	f := strings.Fields(rest)
	if !ok || len(f) == 0 {
		h.t.Fatalf("no %s in %s", line, text)
	}
	kib, err := strconv.ParseFloat(f[0], 64)
	if err != nil {
		h.t.Fatal(err)
	}
	return kib * 1024 / 1e6
}
