package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// MaxSocketPath is the longest path of a unix socket, in bytes: sun_path has
// 108 on Linux and 104 on the BSDs, the closing zero included.
const MaxSocketPath = 103

// ErrSocketInUse is returned by Listen if somebody answers at the path.
var ErrSocketInUse = &Error{
	Code:    CodeRefused,
	Message: "another kith daemon serves this API socket",
	Hint:    "stop it with: kith down, or choose another with --api",
}

// Listen makes the unix socket at path, mode 0600, in a folder that it creates
// with mode 0700 if there is none, and returns a listener that hangs up on
// every other user. A socket that a killed daemon left behind is replaced.
// Closing the listener leaves the file: the caller removes it when all has
// ended, which tells those who wait for that.
//
// Between bind and chmod the folder and the check of each peer guard the
// socket, and the daemon's umask of 077. Changing the umask here instead would
// also hit whatever other goroutines create at that moment.
func Listen(path string) (net.Listener, error) {
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	if err := checkFolder(dir); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("API socket: %w", err)
	}
	return ownListener{ln}, nil
}

func checkSocketPath(path string) error {
	if len(path) > MaxSocketPath {
		return &Error{
			Code:    CodeUsage,
			Message: fmt.Sprintf("the path of the API socket is %d bytes long and the system allows %d", len(path), MaxSocketPath),
			Hint:    "choose a shorter one with --api, for example under /run/user",
		}
	}
	return nil
}

// removeStale removes a socket nobody answers on, and nothing else.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return &Error{Code: CodeRefused, Message: "something that is not a socket stands at " + path, Hint: "move it away or choose another path with --api"}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var d net.Dialer
	if conn, err := d.DialContext(ctx, "unix", path); err == nil {
		conn.Close()
		return ErrSocketInUse
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("API socket: %w", err)
	}
	return nil
}

// ownListener accepts only connections that pass checkPeer.
type ownListener struct{ net.Listener }

func (l ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if checkPeer(conn) == nil {
			return conn, nil
		}
		conn.Close()
	}
}
