package store

import (
	"os"

	"golang.org/x/sys/windows"
)

// errHeld is how the system says that another process holds the lock.
const errHeld = windows.ERROR_LOCK_VIOLATION

// tryLock takes f for this process, without waiting, until f is closed. Others
// cannot read what is locked, so it locks a byte far behind the holder's number.
func tryLock(f *os.File) error {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	return windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{OffsetHigh: 1 << 30})
}
