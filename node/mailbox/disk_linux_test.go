package mailbox_test

import (
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/protocol"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// P08, FS-04 on a real disk: the smallest writes fill it to the last block. What
// there was a receipt for is there, and can be deleted by means of the reserve; when
// the disk has room again, mail is taken.
func TestP08_RealDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make a small disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("kith-test", dir, "tmpfs", 0, "mode=0700,size=16m"); err != nil {
		t.Skip("no small disk: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	cfg := mailbox.Config{Path: filepath.Join(dir, "mailbox.db"), Key: ed25519.NewKeyFromSeed(make([]byte, 32))}
	s, err := mailbox.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	key, tag := newKey().ID(), newTag()
	if err := s.NewBox(key, tag); err != nil {
		t.Fatal(err)
	}
	var acked [][]byte
	for err == nil {
		env := letter(tag, protocol.MinEnvelope)
		var why []wire.Refusal
		if why, err = s.Leave(env); err == nil && why[0] == 0 {
			acked = append(acked, env)
		}
	}
	if len(acked) < 1000 {
		t.Fatalf("%d envelopes are taken: %v", len(acked), err)
	}
	if st, err := s.NodeStatus(t.Context(), nil); err != nil || st.State != "full" {
		t.Errorf("the state is %q, %v", st.GetState(), err)
	}
	reserve := cfg.Path + ".reserve"
	if _, err := os.Stat(reserve); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the reserve was not given up: %v", err)
	}
	for _, env := range acked {
		if !s.Has(env) {
			t.Fatal("what was acknowledged is not there")
		}
	}
	const deleted = 100
	for id := range uint64(deleted) {
		if err := s.Remove(key, id+1); err != nil {
			t.Fatalf("deleting %d of %d: %v", id, len(acked), err)
		}
	}
	if err := syscall.Mount("kith-test", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if s, err = mailbox.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for _, env := range append(letters(tag, protocol.MinEnvelope, 10), acked[deleted:deleted+10]...) {
		if why, err := s.Leave(env); err != nil || why[0] != 0 {
			t.Errorf("with room again a deposit is refused with %v, %v", why, err)
		}
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
