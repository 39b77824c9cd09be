package main

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// quietTime is how long it is watched what a daemon sends after its start.
const quietTime = 5 * time.Second

// TestD16_D17_FirstStart watches a network, in a namespace, in which a daemon
// starts for the first time. Told of one way in it looks for that address and for
// nothing else: no name, no update, no other node, no mDNS (5353), SSDP (1900) or
// NAT-PMP (5351). Told of none it is silent, and offline whatever it is told. That it
// would be seen is shown by those who look up a name, and ask routers for ports.
func TestD16_D17_FirstStart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("a network namespace needs iproute2")
	}
	// Addresses as on the internet, or it would dial none; nothing leads there.
	const way, router, ssdp, igmp = "20.1.1.7", "20.1.1.1", "239.255.255.250", "224.0.0.22"
	const id = "/p2p/12D3KooWCjTcdWn6bcSjW5bT5bVFi5BRGcTrXd2RAz5yPdvrQKJW"
	const name, named = "/ip4/" + way + "/tcp/4001" + id, "/dns4/node.example/tcp/4001" + id
	for what, test := range map[string]struct {
		args  []string
		want  string   // who is looked for
		might []string // and nobody else but these
	}{
		"no way in":  {},
		"a way in":   {args: []string{"--bootstrap", name}, want: way},
		"with ports": {args: []string{"--upnp"}, want: ssdp, might: []string{router, igmp}},
		"offline":    {args: []string{"--preset", "offline", "--upnp", "--bootstrap", named}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			enter, wire := ownNetwork(t)
			var out []byte
			var err error
			var sniffer int
			enter(func() {
				const setUp = `echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6 &&
					ip link add out0 type veth peer name out1 && ip addr add 20.1.1.2/24 dev out0 && ip link set out0 up && ip link set out1 up &&
					ip neigh add ` + way + ` lladdr 02:00:00:00:00:07 dev out0 && ip route add default via ` + router
				if out, err = exec.Command("sh", "-c", setUp).CombinedOutput(); err == nil {
					sniffer, err = newSniffer("out1")
				}
			})
			if err != nil {
				t.Skipf("no network can be made or watched in a namespace: %v: %s", err, out)
			}
			defer unix.Close(sniffer)
			n := &network{t: t, dir: shortDir(t), enter: enter}
			h := n.home("a", append([]string{"--name", "ann", "--listen", "/ip4/0.0.0.0/tcp/0", "--listen", "/ip4/0.0.0.0/udp/0/quic-v1"}, test.args...)...)
			h.up()
			looked := destinations(t, sniffer, time.Now().Add(quietTime))
			for _, to := range looked {
				if to != test.want && !slices.Contains(test.might, to) {
					t.Errorf("it looked for %s", to)
				}
			}
			if test.want != "" && !slices.Contains(looked, test.want) {
				t.Errorf("it did not look for %s", test.want)
			}
			if got := wire(); got != 0 {
				t.Errorf("%v bytes went over loopback", got)
			}
		})
	}
}

// newSniffer opens a socket that gets all that arrives at a device.
func newSniffer(device string) (int, error) {
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in the network's order of bytes
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return -1, err
	}
	req, err := unix.NewIfreq(device)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(req.Uint32())})
	}
	return fd, err
}

// destinations returns whom what arrives until then is for, each once: of ARP the
// address that is looked for, of IPv4 the destination.
func destinations(t *testing.T, sniffer int, until time.Time) (all []string) {
	t.Helper()
	frame := make([]byte, 2048)
	for left := time.Until(until); left > 0; left = time.Until(until) {
		ready := []unix.PollFd{{Fd: int32(sniffer), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, int(left.Milliseconds())+1); n == 0 || errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		n, err := unix.Read(sniffer, frame)
		if err != nil {
			t.Fatal(err)
		}
		to := "something that is neither ARP nor IPv4"
		const ethernet = 14
		switch kind := binary.BigEndian.Uint16(frame[12:]); {
		case kind == unix.ETH_P_ARP && n >= ethernet+28:
			to = netip.AddrFrom4([4]byte(frame[ethernet+24:])).String()
		case kind == unix.ETH_P_IP && n >= ethernet+20:
			to = netip.AddrFrom4([4]byte(frame[ethernet+16:])).String()
		}
		if !slices.Contains(all, to) {
			all = append(all, to)
		}
	}
	return all
}
