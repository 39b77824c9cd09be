package transport

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
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
