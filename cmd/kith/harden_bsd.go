//go:build darwin || freebsd

package main

import "golang.org/x/sys/unix"

// harden gives files no permissions for anyone else and leaves no core file.
func harden() error {
	unix.Umask(0o077)
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}
