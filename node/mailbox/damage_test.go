package mailbox_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ncruces/go-sqlite3"

	"github.com/kith-im/kith/node/mailbox"
)

// A file that was damaged, emptied or mistaken is refused with what to do, or
// says of what it cannot read that it cannot: it is never served as a new one,
// and mail is never said to be gone.
func TestDamage(t *testing.T) {
	cfg := mailbox.Config{Path: filepath.Join(t.TempDir(), "mailbox.db"), Key: ed25519.NewKeyFromSeed(make([]byte, 32))}
	s, err := mailbox.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	key, tag := newKey().ID(), newTag()
	if err := s.NewBox(key, tag); err != nil {
		t.Fatal(err)
	}
	envs := letters(tag, 4<<10, 60)
	if _, err := s.Leave(envs...); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(cfg.Path)
	if err != nil {
		t.Fatal(err)
	}

	type damage struct {
		what string
		file []byte
		must bool // it cannot be opened
	}
	flip := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	damages := []damage{
		{"empty", nil, true},
		{"the first byte", flip(0), true},
		{"half", whole[:len(whole)/2&^4095], true},
		{"cut in a page", whole[:len(whole)-100], false},
		{"noise", random(len(whole)), true},
		{"zeros", make([]byte, len(whole)), true},
		{"a text", []byte("these are not the mailboxes"), true},
		{"another program's", otherDatabase(t, `CREATE TABLE t (a)`), true},
		{"another program's with a version", otherDatabase(t, `CREATE TABLE t (a); PRAGMA user_version = 1`), true},
		{"another program's with a later version", otherDatabase(t, `CREATE TABLE t (a); PRAGMA user_version = 100`), true},
	}
	rng := mrand.New(mrand.NewPCG(1, 2))
	for at := 0; at < len(whole); at += soak(11, 1) * 4096 {
		damages = append(damages, damage{"one bit of a page", flip(at + rng.IntN(4096)), false})
	}
	refused, noticed := 0, 0
	for _, d := range damages {
		cfg.Path = filepath.Join(t.TempDir(), "mailbox.db")
		for name, b := range map[string][]byte{cfg.Path: d.file, cfg.Path + ".reserve": random(4096)} {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := mailbox.Open(t.Context(), cfg)
		if err != nil {
			refused++
			for range 2 { // the second time as well
				if !errors.Is(err, mailbox.ErrDamaged) || !strings.Contains(err.Error(), mailbox.ErrDamaged.Error()) {
					t.Errorf("%s: %v", d.what, err)
				}
				_, err = mailbox.Open(t.Context(), cfg)
			}
			continue
		}
		if d.must {
			t.Errorf("%s: it is opened", d.what)
		}
		p, err := s.Page(key, 0)
		switch {
		case errors.Is(err, sqlite3.IOERR):
			noticed++
		case err != nil:
			t.Errorf("%s: a page cannot be read: %v", d.what, err)
		default:
			for i, item := range p.Items {
				if !bytes.Equal(item.Envelope, envs[i]) {
					t.Errorf("%s: envelope %d is another", d.what, i)
				}
			}
			if len(p.Items) != len(envs) {
				t.Errorf("%s: %d envelopes of %d are there", d.what, len(p.Items), len(envs))
			}
		}
		if err := s.Close(); err != nil && !errors.Is(err, sqlite3.IOERR) && !errors.Is(err, mailbox.ErrDamaged) {
			t.Errorf("%s: %v", d.what, err)
		}
	}
	t.Logf("%d damages: %d not opened, %d noticed by a reader", len(damages), refused, noticed)

	// Moved away, as the error says, with everything beside it left: a new one.
	if err := os.Remove(cfg.Path); err != nil {
		t.Fatal(err)
	}
	if s, err = mailbox.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func otherDatabase(t *testing.T, sql string) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "other.db")
	db, err := sqlite3.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Exec(sql), db.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
