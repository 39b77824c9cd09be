//go:build unix && !linux

package discovery

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

var transientErrors = []syscall.Errno{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN}

// shareAddress lets several daemons of one machine listen on one port: each
// hears what is sent to everybody.
func shareAddress(fd uintptr) error {
	return errors.Join(
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
	)
}

func oneHop(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, 1)
}
