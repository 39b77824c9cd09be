package transport

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// acknowledged returns how many bytes the other end's TCP has acknowledged, and when
// it last acknowledged any; 0 if that is not known.
func acknowledged(conn net.Conn) (bytes uint64, at time.Time) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, at
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, at
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			bytes, at = info.Bytes_acked, time.Now().Add(-time.Duration(info.Last_ack_recv)*time.Millisecond)
		}
	})
	return bytes, at
}
