package transport_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/transport"
)

// sockets returns this process's IP sockets as "proto local remote state",
// addresses and ports in the kernel's hexadecimal.
func sockets(t *testing.T) map[string]string {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	ours := make(map[string]bool)
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
			ours[strings.Trim(to, "socket:[]")] = true
		}
	}
	found := make(map[string]string)
	for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
		table, err := os.ReadFile("/proc/self/net/" + proto)
		if err != nil {
			continue // a kernel without IPv6
		}
		for _, line := range strings.Split(string(table), "\n") {
			if f := strings.Fields(line); len(f) > 9 && ours[f[9]] {
				found[f[9]] = fmt.Sprintf("%s %s %s %s", proto, f[1], f[2], f[3])
			}
		}
	}
	return found
}

// opened returns the sockets that exist now and weren't in before.
func opened(t *testing.T, before map[string]string) (list []string) {
	for inode, s := range sockets(t) {
		if _, old := before[inode]; !old {
			list = append(list, s)
		}
	}
	return list
}

// TestD16_NoMulticast: a host has the sockets it was told to open and none
// else, so there is no mDNS (5353), SSDP (1900) or NAT-PMP (5351) to be seen.
func TestD16_NoMulticast(t *testing.T) {
	groups := multicastGroups(t)
	before := sockets(t)
	realHost(t, transport.Community, tcpLoopback, quicLoopback)
	list := opened(t, before)
	if len(list) != 2 {
		t.Errorf("sockets: %q, want one TCP and one UDP", list)
	}
	for _, s := range list {
		for _, port := range []string{":14E9", ":076C", ":14E7"} {
			if strings.Contains(s, port) {
				t.Errorf("socket %q", s)
			}
		}
	}
	if now := multicastGroups(t); now != groups {
		t.Errorf("multicast groups were %q, are %q", groups, now)
	}
}

// TestD06_ErrandsDontListen: nobody can probe a host for errands.
func TestD06_ErrandsDontListen(t *testing.T) {
	before := sockets(t)
	h := realHost(t, transport.Errands)
	if list := opened(t, before); len(list) != 0 {
		t.Errorf("sockets: %q", list)
	}
	if addrs := h.Network().ListenAddresses(); len(addrs) != 0 {
		t.Errorf("listens on %v", addrs)
	}
}

func multicastGroups(t *testing.T) string {
	t.Helper()
	all := ""
	for _, f := range []string{"/proc/self/net/igmp", "/proc/self/net/igmp6"} {
		if b, err := os.ReadFile(f); err == nil {
			for _, line := range strings.Split(string(b), "\n") {
				if w := strings.Fields(line); len(w) > 2 {
					all += w[0] + w[1] + w[2] + " "
				}
			}
		}
	}
	return all
}

// TestD06_CensoredListensNowhere: in censored mode no socket is listened on, from
// the start and after a change while the host runs.
func TestD06_CensoredListensNowhere(t *testing.T) {
	const listening, unconnected = "0A", "07" // of TCP, of UDP
	before := sockets(t)
	h := realHost(t, transport.Contacts, tcpLoopback, quicLoopback)
	if list := opened(t, before); len(list) != 2 {
		t.Fatalf("an open host has the sockets %q", list)
	}
	if err := h.SetMode(transport.Censored); err != nil {
		t.Fatal(err)
	}
	for _, s := range opened(t, before) {
		if strings.HasPrefix(s, "tcp") && strings.HasSuffix(s, listening) {
			t.Errorf("listens: %q", s)
		}
	}
	// libp2p keeps QUIC's socket, deaf, until it next tidies up.
	for end := time.Now().Add(time.Minute); !testing.Short(); {
		list := opened(t, before)
		if len(list) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("sockets: %q", list)
		}
		<-time.After(time.Second)
	}
	if err := h.SetMode(transport.Open); err != nil {
		t.Fatal(err)
	}
	if addrs, err := h.ListenAddrs(); err != nil || len(addrs) != 2 {
		t.Errorf("back in open mode it listens on %v, %v", addrs, err)
	}

	before = sockets(t)
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hidden, err := transport.New(transport.Config{
		Key: key, Role: transport.Contacts, Memory: transport.MinMemory, Mode: transport.Censored,
		Listen: []ma.Multiaddr{ma.StringCast(tcpLoopback), ma.StringCast(quicLoopback)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer hidden.Close()
	for _, s := range opened(t, before) {
		if strings.HasSuffix(s, listening) || strings.HasPrefix(s, "udp") && strings.HasSuffix(s, unconnected) {
			t.Errorf("a host that starts censored has %q", s)
		}
	}
}
