package transport

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Mode is what a host shows to the network it is in. It may change while the
// host runs (Host.SetMode).
type Mode uint8

const (
	// Open listens, and dials whatever Config.Dial holds.
	Open Mode = iota
	// Censored has no listening socket and dials bridges alone: everything stock
	// libp2p says is recognised, and every stock listener confesses to a prober
	// (threats D06).
	Censored
)

// String returns the word that the command line uses.
func (m Mode) String() string {
	if m == Censored {
		return "censored"
	}
	return "open"
}

// modeState is a host's mode, which its gater shares.
type modeState struct {
	now      atomic.Uint32 // a Mode
	changing sync.Mutex
	listen   []ma.Multiaddr // where an open host listens
	dead     bool           // the host is closed
}

func newModeState(cfg Config) *modeState {
	m := &modeState{listen: cfg.Listen}
	m.now.Store(uint32(cfg.Mode))
	return m
}

func (m *modeState) get() Mode { return Mode(m.now.Load()) }

// permits reports whether the mode alone allows an address. Where a relay is
// named, the connection to the relay is judged, and that happens when it is made.
func (m *modeState) permits(a ma.Multiaddr) bool {
	return m == nil || m.get() == Open || isRelayed(a) || IsVeil(a)
}

func isRelayed(a ma.Multiaddr) bool {
	for _, c := range a {
		if c.Protocol().Code == ma.P_CIRCUIT {
			return true
		}
	}
	return false
}

// Place returns the mode the host is in and where the machine is, both of one
// moment: addresses that a change of the mode took away are no move. They are those
// of ListenAddrs, or, for a host that listens nowhere, those that the machine has. What
// ListenNear and CloseNear change in censored mode is no move either.
func (h *Host) Place() (Mode, []ma.Multiaddr, error) {
	h.mode.changing.Lock()
	defer h.mode.changing.Unlock()
	mode := h.mode.get()
	if mode == Open {
		if addrs, err := h.ListenAddrs(); err != nil || len(addrs) > 0 {
			return mode, addrs, err
		}
	}
	addrs, err := manet.InterfaceMultiaddrs()
	return mode, slices.DeleteFunc(addrs, func(a ma.Multiaddr) bool {
		return ReachOf(a)&(Public|Private) == 0 || manet.IsIP6LinkLocal(a)
	}), err
}

// errMode says that a community node can't hide: others are told to dial it.
var errMode = errors.New("a community node is always open")

// Mode returns the host's mode.
func (h *Host) Mode() Mode { return h.mode.get() }

// Listens reports whether the host is one that listens, in the mode it is in, for
// others than those who know a bridge.
func (h *Host) Listens() bool { return h.mode.get() == Open && len(h.mode.listen) > 0 }

// SetMode changes the mode. When it returns nil after Censored, no socket is
// listened on, and connections that a censored host may not have are closed;
// after Open, everything is listened on again, and a *ListenError says which
// address could not be had, in which case the rest is. QUIC's closed sockets go
// away within a minute. It is safe for concurrent use.
func (h *Host) SetMode(mode Mode) error {
	m := h.mode
	m.changing.Lock()
	defer m.changing.Unlock()
	was := m.get()
	switch {
	case mode == was || m.dead:
		return nil
	case h.role == Community:
		return errMode
	}
	m.now.Store(uint32(mode)) // from here on nothing new begins
	sw, ok := h.Network().(*swarm.Swarm)
	if !ok {
		panic("transport: the host has another network than New gave it")
	}
	for _, a := range sw.ListenAddresses() { // in censored mode those of ListenNear
		if !isRelayed(a) {
			sw.ListenClose(a)
		}
	}
	if mode == Open {
		return listen(sw, m.listen)
	}
	for _, c := range sw.Conns() {
		if h.tooOpen(c) {
			_ = c.Close() // the other side sees it end either way
		}
	}
	// What is left in the peerstore would be dialled in vain, and names in it be
	// asked for in the clear.
	for _, p := range h.Peerstore().PeersWithAddrs() {
		if p == h.ID() {
			continue
		}
		addrs := h.Peerstore().Addrs(p)
		kept := m.filter(addrs)
		if len(kept) == len(addrs) {
			continue
		}
		h.Peerstore().ClearAddrs(p)
		h.Peerstore().AddAddrs(p, kept, peerstore.TempAddrTTL)
	}
	return nil
}

// tooOpen reports whether a connection is one that the mode doesn't permit.
func (h *Host) tooOpen(c network.Conn) bool {
	return !OverVeil(c) && !h.mode.permits(c.RemoteMultiaddr()) && !h.isNear(c.RemoteMultiaddr())
}

// connected ends a connection that was begun in open mode and is there only now
// that the mode is censored. One that SetMode did not see comes here after it.
func (h *Host) connected(_ network.Network, c network.Conn) {
	fromLAN := c.Stat().Direction == network.DirInbound && ReachOf(c.RemoteMultiaddr()) == Private // see InterceptAccept
	if h.tooOpen(c) && !fromLAN {
		h.places.closing.Go(func() { _ = c.Close() }) // as above
	}
}

// book is the peer store, without the names in it in censored mode, but for
// bridges', and for a host that dials nothing: peers tell of themselves whatever
// addresses they like, and the swarm looks up every name it finds, in the clear,
// before the gater sees it.
type book struct {
	peerstore.Peerstore
	peerstore.CertifiedAddrBook // identify asks for it
	mode                        *modeState
	reach                       Reach
}

func (b book) Addrs(p peer.ID) []ma.Multiaddr {
	addrs := b.Peerstore.Addrs(p)
	if b.mode.get() == Open && b.reach != 0 {
		return addrs
	}
	return slices.DeleteFunc(addrs, func(a ma.Multiaddr) bool { return hasName(a) && !IsVeil(a) })
}

// hasName reports whether a name in an address would have to be looked up.
func hasName(a ma.Multiaddr) bool {
	return slices.ContainsFunc(a, func(c ma.Component) bool {
		switch c.Protocol().Code {
		case ma.P_DNS, ma.P_DNS4, ma.P_DNS6, ma.P_DNSADDR:
			return true
		}
		return false
	})
}

// listen opens all addresses that can be had, and returns the first error.
func listen(sw *swarm.Swarm, addrs []ma.Multiaddr) (failed error) {
	for _, a := range addrs {
		if err := sw.AddListenAddr(a); err != nil && failed == nil {
			failed = newListenError(a, err)
		}
	}
	return failed
}

func (m *modeState) filter(addrs []ma.Multiaddr) (kept []ma.Multiaddr) {
	for _, a := range addrs {
		if m.permits(a) {
			kept = append(kept, a)
		}
	}
	return kept
}

// Connect is libp2p's, without the addresses that the mode doesn't permit: those
// with a name in them would be looked up before the gater sees them.
func (h *Host) Connect(ctx context.Context, info peer.AddrInfo) error {
	info, err := h.permitted(info)
	if err != nil {
		return err
	}
	return h.BasicHost.Connect(ctx, info)
}

// permitted is what of a peer's addresses may be dialled in the host's mode.
func (h *Host) permitted(info peer.AddrInfo) (peer.AddrInfo, error) {
	if h.mode.get() == Censored {
		info.Addrs = slices.DeleteFunc(slices.Clone(info.Addrs), func(a ma.Multiaddr) bool { return !h.Permits(a) })
		if len(info.Addrs) == 0 && h.Network().Connectedness(info.ID) != network.Connected && len(h.Peerstore().Addrs(info.ID)) == 0 {
			return info, errNotPermitted
		}
	}
	return info, nil
}

var errNotPermitted = errors.New("no address of this peer may be dialled in censored mode")

// Permits reports whether an address may be dialled in the host's mode. The
// gater may still refuse it.
func (h *Host) Permits(a ma.Multiaddr) bool { return h.mode.permits(a) || h.isNear(a) }
