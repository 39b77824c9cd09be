package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/net/ipv6"
)

// lanPort is where packets are sent to, by UDP. A port of its own disturbs
// nobody else's protocol (docs/decisions/0016).
const lanPort = 28421

// allNodes is the IPv6 group that every machine is in, so that nobody has to
// join, and thereby announce, a group of ours (RFC 4291, section 2.7.1).
var allNodes = netip.MustParseAddr("ff02::1")

// sockets is the Link of real networks: broadcast over IPv4, and the group of
// all nodes over IPv6. Either may be missing.
type sockets struct {
	v4, v6  *net.UDPConn // what is received; nil: none
	packets chan received
	closed  chan struct{}
	once    sync.Once
	reading sync.WaitGroup

	mu     sync.Mutex
	joined map[int]bool // interfaces on which v6 is in allNodes
}

type received struct {
	data []byte
	from netip.Addr
	err  error
}

func openSockets() (Link, error) {
	s := &sockets{packets: make(chan received), closed: make(chan struct{}), joined: make(map[int]bool)}
	shared := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return control(raw, shareAddress) }}
	listen := func(network, address string) (*net.UDPConn, error) {
		c, err := shared.ListenPacket(context.Background(), network, address)
		if err != nil {
			return nil, err
		}
		return c.(*net.UDPConn), nil
	}
	var err4, err6 error
	s.v4, err4 = listen("udp4", fmt.Sprintf("0.0.0.0:%d", lanPort))
	s.v6, err6 = listen("udp6", fmt.Sprintf("[::]:%d", lanPort))
	if s.v4 == nil && s.v6 == nil {
		return nil, errors.Join(err4, err6)
	}
	for _, c := range []*net.UDPConn{s.v4, s.v6} {
		if c != nil {
			s.reading.Go(func() { s.read(c) })
		}
	}
	return s, nil
}

func (s *sockets) read(c *net.UDPConn) {
	for {
		buf := make([]byte, 2048)
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil && !errors.Is(err, net.ErrClosed) && isTransient(err) {
			continue
		}
		select {
		case s.packets <- received{buf[:n], from.Addr(), err}:
		case <-s.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

// isTransient says whether a socket goes on after an error: systems report
// ICMP answers, and datagrams longer than the buffer, as errors of a read.
func isTransient(err error) bool {
	var no syscall.Errno
	return errors.As(err, &no) && slices.Contains(transientErrors, no)
}

func (s *sockets) Receive(packet []byte) (int, netip.Addr, error) {
	select {
	case r := <-s.packets:
		return copy(packet, r.data), r.from, r.err
	case <-s.closed:
		return 0, netip.Addr{}, net.ErrClosed
	}
}

func (s *sockets) Close() (err error) {
	s.once.Do(func() {
		close(s.closed)
		for _, c := range []*net.UDPConn{s.v4, s.v6} {
			if c != nil {
				err = errors.Join(err, c.Close())
			}
		}
		s.reading.Wait()
	})
	return err
}

// Networks returns IPv4 before IPv6, each in the order of the interfaces.
func (s *sockets) Networks() ([]LocalNetwork, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var v4, v6 []LocalNetwork
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&(net.FlagLoopback|net.FlagPointToPoint) != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			ipNet, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, ok := netip.AddrFromSlice(ipNet.IP)
			if !ok {
				continue
			}
			ip = ip.Unmap()
			ones, _ := ipNet.Mask.Size()
			on := LocalNetwork{Interface: i.Name, Prefix: netip.PrefixFrom(ip, ones)}
			switch {
			case ip.Is4() && s.v4 != nil && i.Flags&net.FlagBroadcast != 0 && ones < 31:
				v4 = append(v4, on)
			case ip.Is6() && s.v6 != nil && i.Flags&net.FlagMulticast != 0 && ip.IsLinkLocalUnicast():
				s.join(i)
				v6 = append(v6, on)
			}
		}
	}
	return append(v4, v6...), nil
}

// join has the IPv6 socket hear allNodes on an interface where the system does
// not do that by itself. Nothing is sent for it (RFC 3810, section 6).
func (s *sockets) join(i net.Interface) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.joined[i.Index] {
		return
	}
	s.joined[i.Index] = true
	_ = ipv6.NewPacketConn(s.v6).JoinGroup(&i, &net.UDPAddr{IP: allNodes.AsSlice()})
}

// Send uses a socket of its own, bound to our address on the network: the packet
// is sealed to that address, and its port says nothing.
func (s *sockets) Send(on LocalNetwork, packet []byte) error {
	ip := on.Prefix.Addr()
	var to netip.AddrPort
	if ip.Is4() {
		to = netip.AddrPortFrom(broadcast(on.Prefix), lanPort)
	} else {
		ip = ip.WithZone(on.Interface)
		to = netip.AddrPortFrom(allNodes.WithZone(on.Interface), lanPort)
	}
	// One hop: nothing of this is for the other side of a router. That is the
	// default for IPv6 multicast.
	one := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		if ip.Is6() {
			return nil
		}
		return control(raw, oneHop)
	}}
	c, err := one.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(ip, 0).String())
	if err != nil {
		return err
	}
	_, err = c.(*net.UDPConn).WriteToUDPAddrPort(packet, to)
	return errors.Join(err, c.Close())
}

// broadcast returns the address of everybody on an IPv4 network.
func broadcast(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

func control(raw syscall.RawConn, set func(fd uintptr) error) error {
	var failed error
	err := raw.Control(func(fd uintptr) { failed = set(fd) })
	return errors.Join(err, failed)
}
