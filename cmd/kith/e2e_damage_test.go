package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// files are the contents of a folder's files by their paths.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		out[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// lastWords is the last line that a daemon wrote to its standard error.
func (h *home) lastWords() string {
	text, err := os.ReadFile(h.log)
	if err != nil {
		h.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}

// ended says whether the daemon has ended by itself, or does so within the
// time that stopping takes.
func (h *home) ended() bool {
	limit := time.NewTimer(stopTime)
	defer limit.Stop()
	select {
	case err := <-h.exited:
		h.exited <- err
		return true
	case <-limit.C:
		return false
	}
}

// TestDamage starts kith on homes that were damaged. It must say so and touch
// nothing, or be whole: never begin anew, never show what was not said.
func TestDamage(t *testing.T) {
	n := newNetwork(t)
	a, b := n.pair("ann", "ben")
	for i := range 20 {
		b.must("send", "ann", fmt.Sprintf("remember %d", i))
	}
	b.must("send", "ann", "the last", "--wait", "delivered", "--timeout", "60s")
	account := a.ready.Account
	want := a.must("read", "ben", "--last", "100", "--json")
	a.stop()
	whole := files(t, a.dir)
	database := len(whole["store/kith.db"])
	if database == 0 || whole["store/key.0"] == nil || whole["store/key.1"] == nil {
		t.Fatal("the store is not where this test looks for it")
	}

	type damage struct {
		what string
		do   func(at string) error
		must bool // it can not be started
	}
	remove := func(names ...string) func(string) error {
		return func(dir string) (err error) {
			for _, name := range names {
				err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
			}
			return err
		}
	}
	alter := func(name string, f func([]byte) []byte) func(string) error {
		return func(dir string) error {
			return os.WriteFile(filepath.Join(dir, name), f(bytes.Clone(whole[name])), 0o600)
		}
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1; return b }
	}
	damages := []damage{
		{"no key file", remove("store/key.0", "store/key.1"), true},
		{"both key files altered", func(dir string) error {
			return errors.Join(alter("store/key.0", flip(100))(dir), alter("store/key.1", flip(100))(dir))
		}, true},
		{"one key file lost", remove("store/key.0"), false},
		{"one key file altered", alter("store/key.1", flip(100)), false},
		{"no database", remove("store/kith.db"), true},
		{"an empty database", alter("store/kith.db", func([]byte) []byte { return nil }), true},
		{"half a database", alter("store/kith.db", func(b []byte) []byte { return b[:len(b)/2&^4095] }), true},
		{"a database cut in a block", alter("store/kith.db", func(b []byte) []byte { return b[:len(b)-100] }), true},
		{"the first byte", alter("store/kith.db", flip(0)), true},
		{"noise for a database", alter("store/kith.db", func(b []byte) []byte { rand.Read(b); return b }), true},
		{"zeros for a database", alter("store/kith.db", func(b []byte) []byte { clear(b); return b }), true},
	}
	const block = 4096
	rng := mrand.New(mrand.NewPCG(1, 2))
	for start := 0; start < database; start += block {
		at := start + rng.IntN(block)
		damages = append(damages, damage{fmt.Sprintf("one bit of block %d", start/block), alter("store/kith.db", flip(at)), false})
	}
	for i, d := range damages {
		t.Run(d.what, func(t *testing.T) {
			h := n.home(fmt.Sprintf("d%d", i), a.args...)
			h.t = t
			for name, content := range whole {
				path := filepath.Join(h.dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.do(h.dir); err != nil {
				t.Fatal(err)
			}
			broken := files(t, h.dir)
			if err := h.start(); err == nil {
				defer h.kill()
				code, stdout, stderr := h.cli("read", "ben", "--last", "100", "--json")
				switch {
				case d.must:
					t.Error("it starts")
				case h.ready.Account != account:
					t.Errorf("the account is %s, want %s", h.ready.Account, account)
				case code == exitOK && stdout != want:
					t.Errorf("it shows what was not said:\n%s\nwant\n%s", stdout, want)
				case code == exitOK:
				case strings.Contains(stderr, "damaged") && strings.Contains(stderr, "backup"):
				case h.ended() && strings.Contains(h.lastWords(), "backup"): // it noticed before the question came
				default:
					t.Errorf("read: exit %d, %q; the daemon says %q", code, stderr, h.lastWords())
				}
				return
			}
			if last := h.lastWords(); !strings.HasPrefix(last, `{"error":`) || !strings.Contains(last, "backup") {
				t.Errorf("it says %q", last)
			}
			after := files(t, h.dir)
			for _, name := range []string{"store/key.0", "store/key.1", "store/kith.db"} {
				if !bytes.Equal(after[name], broken[name]) || (after[name] == nil) != (broken[name] == nil) {
					t.Errorf("%s was touched", name)
				}
			}
		})
	}
	a.up()
	if got := a.must("read", "ben", "--last", "100", "--json"); a.ready.Account != account || got != want {
		t.Error("the home that was not damaged is not what it was")
	}
}
