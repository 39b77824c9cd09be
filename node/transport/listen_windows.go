package transport

import "syscall"

// Codes of Windows Sockets, which package syscall does not name.
var (
	errInUse   = []error{syscall.Errno(10048)}                       // WSAEADDRINUSE
	errNotHere = []error{syscall.Errno(10049), syscall.Errno(10047)} // WSAEADDRNOTAVAIL, WSAEAFNOSUPPORT
	errDenied  = []error{syscall.WSAEACCES}
)
