package store

import "golang.org/x/sys/unix"

// Sync writes the file's contents to the disk, and of what is known about it
// only what reading the contents back needs.
func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}
