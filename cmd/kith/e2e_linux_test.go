package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T, dir, size string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("kith-test", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Skipf("a small disk can not be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}

// fill takes what room is left on the disk of dir, until free.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(chunk)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFS04_DiskFull talks on a disk that fills up: what can not be kept is
// refused on the one side and not acknowledged on the other; reading works,
// and everything goes on when there is room.
func TestFS04_DiskFull(t *testing.T) {
	n := newNetwork(t)
	smallDisk(t, filepath.Join(n.dir, "a"), "8m")
	a, b := n.pair("ann", "ben")
	t.Cleanup(a.kill) // before the disk goes
	free := fill(t, a.dir)

	sound := func(want bool) {
		t.Helper()
		var out struct{ Checks []checkJSON }
		code, stdout, stderr := a.cli("doctor", "--json")
		if err := json.Unmarshal([]byte(stdout), &out); err != nil {
			t.Fatal(err, code, stderr)
		}
		all := out.Checks
		i := slices.IndexFunc(all, func(c checkJSON) bool { return c.Name == "store" })
		if i < 0 || all[i].OK != want || want != !strings.Contains(all[i].Text, "The disk is full") {
			t.Errorf("doctor on a disk that has room, %v: %v", want, all)
		}
	}

	// What emptying the log gives back is filled up as well, until nothing goes.
	var kept []string
	for refused := 0; refused < 3; {
		text := fmt.Sprintf("kept %d", len(kept))
		switch code, _, stderr := a.cli("send", "ben", text); {
		case code == exitOK:
			kept, refused = append(kept, text), 0
		case code == exitQuota && strings.Count(stderr, "\n") == 1 && strings.Contains(stderr, "disk is full"):
			refused++
			fill(t, a.dir)
		default:
			t.Fatalf("send on a full disk: exit %d, %q", code, stderr)
		}
		if len(kept) > 1000 {
			t.Fatal("the disk does not get full")
		}
	}
	a.refused(exitQuota, "disk is full", "send", "ben", "refused")
	if got := a.read("ben"); len(got) != len(kept)+2 {
		t.Errorf("%d messages are shown, want %d", len(got), len(kept)+2)
	}
	sound(false)
	b.must("send", "ann", "waits for room")
	if s := a.status(); !s.Ready || s.ReadOnly {
		t.Errorf("the status is %+v", s)
	}

	free()
	kept = append(kept, "there is room again")
	a.must("send", "ben", kept[len(kept)-1], "--wait", "delivered", "--timeout", "60s")
	b.must("send", "ann", "so there is", "--wait", "delivered", "--timeout", "60s")
	sound(true)
	a.until("what waited has arrived", func() bool { return len(a.read("ben")) == len(kept)+4 })
	var texts []string
	for _, m := range b.read("ann")[2:] {
		if !m.FromMe {
			texts = append(texts, m.Text)
		}
	}
	if !slices.Equal(texts, kept) {
		t.Errorf("ben reads %q, want %q", texts, kept)
	}
	account := a.ready.Account
	a.kill()
	if a.up(); a.ready.Account != account {
		t.Error("the account changed")
	}
	a.kill()
}

// TestFS04_NoRoomToBegin starts kith for the first time on a full disk.
func TestFS04_NoRoomToBegin(t *testing.T) {
	n := newNetwork(t)
	dir := filepath.Join(n.dir, "a")
	smallDisk(t, dir, "12m")
	free := fill(t, dir)
	code, stdout, stderr := cli(t, "", "--home", dir, "-q", "up", "--listen", "/ip4/127.0.0.1/tcp/0")
	if code != exitQuota || strings.Contains(stdout, "ready") || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "free some space") {
		t.Errorf("kith up on a full disk: exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	free()
	a := n.home("a", "--listen", "/ip4/127.0.0.1/tcp/0")
	a.up()
	if a.ready.Account == "" {
		t.Error("there is no account")
	}
	a.kill()
}
