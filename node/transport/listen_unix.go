//go:build unix

package transport

import "syscall"

var (
	errInUse   = []error{syscall.EADDRINUSE}
	errNotHere = []error{syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT}
	errDenied  = []error{syscall.EACCES, syscall.EPERM}
)
