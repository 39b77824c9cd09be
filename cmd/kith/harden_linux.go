package main

import (
	"errors"

	"golang.org/x/sys/unix"
)

// harden keeps what this process holds from others: its files get no
// permissions for anyone else, it leaves no core file, and no process of the
// same user can attach to it or read its memory.
func harden() error {
	unix.Umask(0o077)
	return errors.Join(
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
	)
}
