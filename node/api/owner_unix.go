//go:build linux || darwin || freebsd

package api

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

var errForeignPeer = errors.New("API socket: the other side is another user")

// checkPeer refuses a connection whose other end is neither this user nor
// root, who could read the daemon's memory anyway.
func checkPeer(conn net.Conn) error {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	var uid int
	var uidErr error
	if err := raw.Control(func(fd uintptr) { uid, uidErr = peerUID(int(fd)) }); err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	if uidErr != nil {
		return fmt.Errorf("API socket: %w", uidErr)
	}
	if uid != os.Getuid() && uid != 0 {
		return errForeignPeer
	}
	return nil
}

// checkFolder refuses a folder in which another user could put a socket of
// his own in the place of ours.
func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if info.Mode().Perm()&0o022 == 0 && (owner == os.Getuid() || os.Getuid() == 0) {
		return nil
	}
	return &Error{
		Code:    CodeRefused,
		Message: fmt.Sprintf("other users can change the folder of the API socket, %s", dir),
		Hint:    "choose a folder of your own with --api, or close it with: chmod 700",
	}
}
