//go:build unix

package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// errHeld is how the system says that another process holds the lock.
const errHeld = unix.EWOULDBLOCK

// tryLock takes f for this process, without waiting, until f is closed.
func tryLock(f *os.File) error {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}
