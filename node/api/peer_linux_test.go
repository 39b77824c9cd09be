package api

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

const nobody = 65534

// asNobody runs f on a thread of its own whose user is nobody. The thread ends
// with f.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			done <- errno
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// ask makes one raw connection to path on the calling thread, asks for
// something and returns what came back.
func ask(path string) (answer []byte, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, err
	}
	limit := unix.NsecToTimeval((2 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return nil, err
	}
	// The server may have hung up already; what counts is the answer.
	_, _ = unix.Write(fd, []byte("POST /kith.v1.KithService/Status HTTP/1.1\r\nHost: kith\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"))
	buf := make([]byte, 256)
	n, err := unix.Read(fd, buf)
	if errors.Is(err, unix.ECONNRESET) {
		return nil, nil
	}
	return buf[:max(n, 0)], err
}

// TestH04_OtherUser shows each guard refusing by itself: the modes, then, with
// the modes opened, the check of the peer; and the client's check of the server.
func TestH04_OtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can act as another user")
	}
	_, path, _ := serve(t, &scripted{}, nil)
	asNobody(t, func() {
		if _, err := ask(path); !errors.Is(err, unix.EACCES) {
			t.Errorf("another user connects: %v, want %v", err, unix.EACCES)
		}
	})

	for dir := filepath.Dir(path); dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(path); err != nil || len(got) == 0 {
		t.Fatalf("the owner gets %q, %v: the test asks wrongly", got, err)
	}
	asNobody(t, func() {
		if got, err := ask(path); err != nil || len(got) != 0 {
			t.Errorf("another user gets %q, %v, want nothing", got, err)
		}
	})

	foreign := filepath.Join(shortDir(t), "api.sock")
	if err := os.Chmod(filepath.Dir(foreign), 0o777); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: foreign}), unix.Listen(fd, 1)); err != nil {
			t.Error(err)
		}
	})
	c := NewClient(foreign)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // nobody accepts there
	defer cancel()
	_, err := c.Status(ctx, &apiv1.StatusRequest{})
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeRefused {
		t.Errorf("a client talks to another user's socket: %v", err)
	}
}
