package mailbox_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"golang.org/x/sys/unix"

	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/protocol"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// ownNetwork returns what runs a function inside a new network namespace, all
// of 10.0.0.0/8 being its loopback device.
func ownNetwork(t *testing.T) (enter func(func())) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a network namespace")
	}
	calls, made := make(chan func()), make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = addressesUp()
		}
		made <- err
		if err == nil {
			for f := range calls {
				f()
			}
		}
	}()
	if err := <-made; err != nil {
		t.Skip("no network namespace: ", err)
	}
	t.Cleanup(func() { close(calls) })
	return func(f func()) {
		done := make(chan struct{})
		calls <- func() { defer close(done); f() }
		<-done
	}
}

// addressesUp gives the loopback device 10.0.0.1/8, and with it every address in
// there.
func addressesUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, set := range []struct {
		request uint
		value   func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{10, 0, 0, 1}) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 0, 0, 0}) }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }},
	} {
		lo, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		if err := set.value(lo); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.request, lo); err != nil {
			return err
		}
	}
	return nil
}

// G01: a thousand peers of 250 address ranges leave a million envelopes as fast
// as they can. A contact's message is accepted in two seconds at any moment,
// and disk and memory stay within what they may be.
func TestG01_FloodOfPeers(t *testing.T) {
	peers, each := soak(50, 1000), soak(200, 1000)
	quota := int64(soak(16<<20, 512<<20))
	enter := ownNetwork(t)
	what := serving{Dir: t.TempDir(), Listen: "/ip4/10.0.0.1/tcp/4001", Limits: mailbox.Limits{Quota: quota}}
	var p *process
	enter(func() { p = startProcess(t, what) })
	key := [32]byte(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
	dialInside := func(from netip.Addr, network, to string) (conn net.Conn, err error) {
		enter(func() { conn, err = dialHere(from, network, to) })
		return conn, err
	}
	tries := 0 // beyond the first
	dial := func(from netip.Addr) *client {
		host, err := floodHost(from, dialInside)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { host.Close() })
		// While a thousand others shake hands a node may refuse to.
		c, err := dialFrom(t, host, p.info, key)
		again := time.NewTicker(100 * time.Millisecond)
		defer again.Stop()
		for began := time.Now(); err != nil && time.Since(began) < 10*time.Second; tries++ {
			<-again.C
			host.Network().(*swarm.Swarm).Backoff().Clear(p.info.ID)
			c, err = dialFrom(t, host, p.info, key)
		}
		if err != nil {
			t.Fatalf("the node does not answer: %v", err)
		}
		return c
	}
	ownerIP, contactIP := netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("10.1.1.1")
	owner, contact, bad := dial(ownerIP), newTag(), newTag()
	box := newKey()
	owner.open(box, true)
	owner.register(1, false, contact, bad)
	request := newTag()
	answer[*wire.Registered](t, owner.ask(tagsFrame(1, false, wire.ClassRequest, request)))
	idle := residentOf(strconv.Itoa(p.cmd.Process.Pid))

	at := what.Listen + "/p2p/" + p.info.ID.String()
	flood := roleCommand(t, role{Flood: &flooding{Node: at, Key: key, Peers: peers, Each: each, Bad: bad, Request: request}})
	var printed bytes.Buffer
	flood.Stdout = &printed
	var err error
	enter(func() { err = flood.Start() })
	if err != nil {
		t.Fatal(err)
	}
	// Those who flood have machines of their own: theirs is the time left over.
	if err := unix.Setpriority(unix.PRIO_PROCESS, flood.Process.Pid, 19); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	began := time.Now()
	t.Cleanup(func() { _ = flood.Process.Kill() })
	go func() { ended <- flood.Wait() }()

	// The contact writes twenty times a second, under a new name every second.
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	var times, dialled []time.Duration
	var left [][]byte
	var sender *client
	memory, disk := int64(0), int64(0)
	for over := false; !over; {
		select {
		case err := <-ended:
			if over = true; err != nil {
				t.Fatalf("the flood: %v, %s", err, &printed)
			}
		case <-ticker.C:
		}
		at, list := time.Now(), &times
		if len(left)%20 == 0 {
			if sender != nil {
				sender.net.Conn().Close()
			}
			sender, list = dial(contactIP), &dialled
		}
		env := letter(contact, protocol.MinEnvelope)
		if why := sender.deposit(env); why != 0 {
			t.Fatalf("after %v the contact is refused with %d", time.Since(began), why)
		}
		*list = append(*list, time.Since(at))
		left = append(left, env)
		if len(left)%10 == 1 {
			memory, disk = max(memory, residentOf(strconv.Itoa(p.cmd.Process.Pid))), max(disk, size(t, what.Dir))
		}
	}
	took := time.Since(began)
	var got flooded
	if err := json.Unmarshal(printed.Bytes(), &got); err != nil {
		t.Fatalf("the flood says %s", &printed)
	}
	slices.Sort(times)
	slices.Sort(dialled)
	t.Logf("%d deposits of %d peers in %v: %d stored, refused by reason %v, %d streams begun anew",
		got.Sent, got.Peers, took.Round(time.Millisecond), got.Stored, got.Refused, got.Broken)
	t.Logf("the contact's %d deposits: median %v, longest %v; %d with dialling: median %v, longest %v, %d dialled again",
		len(times), times[len(times)/2], times[len(times)-1], len(dialled), dialled[len(dialled)/2], dialled[len(dialled)-1], tries)
	t.Logf("resident: %d MB, before the flood %d MB; on the disk: %d MB of %d MB", memory>>20, idle>>20, disk>>20, quota>>20)
	if got.Peers < int64(peers)*9/10 || got.Sent < got.Peers*int64(each)*9/10 {
		t.Errorf("it was no flood: %+v", got)
	}
	if slowest := max(times[len(times)-1], dialled[len(dialled)-1]); slowest > 2*time.Second {
		t.Errorf("the contact waited for %v", slowest)
	}
	// Beside the quota: the log, twice what it is moved at, and the reserve.
	if limit := quota + quota/8 + 2*32<<20 + 4<<20; disk > limit {
		t.Errorf("%d bytes are on the disk, want %d", disk, limit)
	}
	if memory > 512<<20 {
		t.Errorf("%d bytes are resident", memory)
	}
	found := make(map[string]bool)
	owner = dial(ownerIP)
	owner.open(box, false)
	for _, env := range owner.drain() {
		found[string(env)] = true
	}
	for i, env := range left {
		if !found[string(env)] {
			t.Fatalf("the contact's message %d is not there", i)
		}
	}
}

// size is how many bytes the files of a folder have.
func size(t *testing.T, dir string) (n int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}
