package store

import (
	"errors"

	"golang.org/x/sys/windows"
)

// syncDir has nothing to do: a folder cannot be flushed by an ordinary user,
// and NTFS keeps a journal of the names.
func (osDisk) syncDir(string) error { return nil }

// noSpace says that err is for want of room, on the disk or in the user's quota.
func noSpace(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) ||
		errors.Is(err, windows.ERROR_HANDLE_DISK_FULL) ||
		errors.Is(err, windows.ERROR_DISK_QUOTA_EXCEEDED)
}
