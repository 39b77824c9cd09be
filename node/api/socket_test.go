//go:build linux || darwin || freebsd

package api

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

func TestX15_SocketModes(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077} {
		old := syscall.Umask(umask)
		path := filepath.Join(shortDir(t), "new", "api.sock")
		ln, err := Listen(path)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("umask %03o: socket is %v, %v, want mode 600", umask, info.Mode(), err)
		}
		if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("umask %03o: folder is %v, %v, want mode 700", umask, info.Mode(), err)
		}
	}
}

func TestListen(t *testing.T) {
	t.Run("stale socket", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "api.sock")
		stale, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		stale.Close()
		ln, err := Listen(path)
		if err != nil {
			t.Fatalf("over a stale socket: %v", err)
		}
		ln.Close()
	})
	t.Run("in use", func(t *testing.T) {
		_, path, _ := serve(t, &scripted{}, nil)
		if _, err := Listen(path); !errors.Is(err, ErrSocketInUse) {
			t.Errorf("got %v, want %v", err, ErrSocketInUse)
		}
	})
	t.Run("a file in the way", func(t *testing.T) {
		path := filepath.Join(shortDir(t), "api.sock")
		if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path); err == nil {
			t.Fatal("the file was taken for a socket")
		}
		if got, _ := os.ReadFile(path); string(got) != "mine" {
			t.Error("the file is gone")
		}
	})
	t.Run("folder open to others", func(t *testing.T) {
		dir := shortDir(t)
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		_, err := Listen(filepath.Join(dir, "api.sock"))
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeRefused {
			t.Errorf("got %v, want a refusal", err)
		}
	})
	t.Run("path too long", func(t *testing.T) {
		path := filepath.Join(shortDir(t), strings.Repeat("x", 120), "api.sock")
		_, err := Listen(path)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeUsage {
			t.Errorf("Listen: got %v, want a usage error", err)
		}
		c := NewClient(path)
		defer c.Close()
		if _, err := c.Status(t.Context(), &apiv1.StatusRequest{}); !errors.As(err, &e) || e.Code != CodeUsage {
			t.Errorf("Client: got %v, want a usage error", err)
		}
	})
}
