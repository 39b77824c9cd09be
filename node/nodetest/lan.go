package nodetest

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/kith-im/kith/discovery"
)

// LAN is one local network, on which all machines that open it hear one another.
// Streams between them go over a Network as ever.
type LAN struct {
	mu    sync.Mutex
	links []*lanLink
	// Heard, if set, is given every packet: what somebody who watches the
	// network sees. It must not keep the packet.
	Heard func(from netip.Addr, packet []byte)
}

// Open attaches machine i; it is what Options.Link wants.
func (l *LAN) Open(i int) func() (discovery.Link, error) {
	return func() (discovery.Link, error) {
		link := &lanLink{lan: l, ip: IP(i), packets: make(chan lanPacket, 64), closed: make(chan struct{})}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.links = append(l.links, link)
		return link, nil
	}
}

// Say sends a packet to everybody, from any address.
func (l *LAN) Say(from netip.Addr, packet []byte) {
	l.mu.Lock()
	links, heard := slices.Clone(l.links), l.Heard
	l.mu.Unlock()
	if heard != nil {
		heard(from, packet)
	}
	for _, link := range links {
		select {
		case link.packets <- lanPacket{bytes.Clone(packet), from}:
		default: // as sockets do whose reader is too slow
		}
	}
}

type lanPacket struct {
	data []byte
	from netip.Addr
}

type lanLink struct {
	lan     *LAN
	ip      netip.Addr
	packets chan lanPacket
	once    sync.Once
	closed  chan struct{}
}

// Networks returns one that all machines of a simulated network are in.
func (l *lanLink) Networks() ([]discovery.LocalNetwork, error) {
	return []discovery.LocalNetwork{{Interface: "sim0", Prefix: netip.PrefixFrom(l.ip, 0)}}, nil
}

func (l *lanLink) Send(on discovery.LocalNetwork, packet []byte) error {
	l.lan.Say(on.Prefix.Addr(), packet)
	return nil
}

func (l *lanLink) Receive(packet []byte) (int, netip.Addr, error) {
	select {
	case p := <-l.packets:
		return copy(packet, p.data), p.from, nil
	case <-l.closed:
		return 0, netip.Addr{}, net.ErrClosed
	}
}

func (l *lanLink) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.lan.mu.Lock()
		defer l.lan.mu.Unlock()
		l.lan.links = slices.DeleteFunc(l.lan.links, func(o *lanLink) bool { return o == l })
	})
	return nil
}
