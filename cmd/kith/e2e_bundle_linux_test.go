package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kith-im/kith/protocol/bundle"
)

// TestBundleSticks fills a stick up, and meets one that is write-protected.
func TestBundleSticks(t *testing.T) {
	t.Parallel()
	stick := t.TempDir()
	if err := syscall.Mount("stick", stick, "tmpfs", 0, "size=600k"); err != nil {
		t.Skipf("a small stick takes root: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(stick, syscall.MNT_DETACH) })
	ann, ben, _ := metByHand(t)
	if code, _, stderr := cli(t, strings.Repeat("a text that is to be carried\n", 600), "--home", ann.dir, "send", "ben", "--stdin"); code != exitOK {
		t.Fatalf("send: %s", stderr)
	}
	ann.refused(exitQuota, "is full", "bundle", "export", filepath.Join(stick, "all"))
	files := func() (names []string) {
		entries, err := os.ReadDir(stick)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || !bundle.IsSize(info.Size()) {
				t.Errorf("the stick shows %s", e.Name())
			}
			names = append(names, filepath.Join(stick, e.Name()))
		}
		return names
	}
	if left := files(); len(left) != 0 {
		t.Errorf("a full stick was left with %v", left)
	}
	// In pieces, on one small stick after the other.
	for trips := 0; ; trips++ {
		if trips > 5 {
			t.Fatal("it does not end")
		}
		code, _, stderr := ann.cli("bundle", "export", "--new", "--size", "256KiB", stick)
		written := files()
		for _, f := range written {
			ben.must("bundle", "import", f)
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
		if code == exitOK {
			break
		}
		if code != exitQuota || len(written) == 0 || !strings.Contains(stderr, "whole") || !strings.Contains(stderr, "--new") {
			t.Fatalf("exit %d, %d files, %q", code, len(written), stderr)
		}
	}
	if got := len(ben.read("ann")); got != 600 {
		t.Errorf("%d messages arrived, want 600", got)
	}
	if err := syscall.Mount("", stick, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Skipf("a write-protected stick takes root: %v", err)
	}
	ann.refused(exitRefused, "cannot be written", "bundle", "export", stick)
}
