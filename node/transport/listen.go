package transport

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// ListenError says which address of Config.Listen can't be had, and why.
type ListenError struct {
	Addr   ma.Multiaddr
	Reason ListenReason
	Err    error
}

func (e *ListenError) Error() string { return fmt.Sprintf("listen on %s: %v", e.Addr, e.Err) }

// Unwrap returns what the operating system or libp2p said.
func (e *ListenError) Unwrap() error { return e.Err }

// ListenReason is why an address can't be listened on.
type ListenReason uint8

const (
	ListenFailed      ListenReason = iota // none of the others
	ListenInUse                           // another socket has it
	ListenNotHere                         // this machine has no such address
	ListenDenied                          // the system does not let this user have it
	ListenUnsupported                     // neither TCP nor QUIC on an IP address
)

// soleTCP is TCP without sharing. The sockets of a host that dials from where it
// listens have a port in common, and would let a second daemon listen there too,
// each hearing half.
type soleTCP struct{ *tcp.TcpTransport }

// Listen listens where nobody else does.
func (t *soleTCP) Listen(a ma.Multiaddr) (transport.Listener, error) {
	l, err := manet.Listen(a)
	if err != nil {
		return nil, err
	}
	if err := l.Close(); err != nil {
		return nil, err
	}
	return t.TcpTransport.Listen(a)
}

func newListenError(addr ma.Multiaddr, err error) *ListenError {
	e := &ListenError{Addr: addr, Err: err}
	is := func(targets ...error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
	switch {
	case is(errInUse...):
		e.Reason = ListenInUse
	case is(errNotHere...):
		e.Reason = ListenNotHere
	case is(errDenied...):
		e.Reason = ListenDenied
	case is(swarm.ErrNoTransport):
		e.Reason = ListenUnsupported
	}
	return e
}
