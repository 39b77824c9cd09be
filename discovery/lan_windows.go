package discovery

import "syscall"

// Codes of Windows Sockets: an ICMP answer to something sent, and a datagram
// longer than the buffer.
var transientErrors = []syscall.Errno{10052, 10054, 10040}

// ipTTL is IP_TTL, which package syscall does not name here.
const ipTTL = 4

// shareAddress lets several daemons of one machine listen on one port: each
// hears what is sent to everybody.
func shareAddress(fd uintptr) error {
	return syscall.SetsockoptInt(syscall.Handle(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
}

func oneHop(fd uintptr) error {
	return syscall.SetsockoptInt(syscall.Handle(fd), syscall.IPPROTO_IP, ipTTL, 1)
}
