package mailbox_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/protocol"
)

// simDisk is a file layer in memory that fails on request. What is written
// reaches "durable" only by a sync; a power cut leaves any mixture of the
// sectors written since.
type simDisk struct {
	name string

	mu    sync.Mutex
	rng   *rand.Rand
	files map[string]*simFile

	cutIn int // power goes after so many more changes; 0: never
	off   bool
	eioIn int // the so many-th next sync fails; 0: none
	quota int // bytes in all; 0: no limit
}

type simFile struct {
	live, durable []byte
	pending       []simChange
}

type simChange struct {
	off  int64
	data []byte // nil: truncated to off
}

const sector = 512

// newSimDisk registers a disk for as long as the test runs.
func newSimDisk(t testing.TB, seed uint64) *simDisk {
	d := &simDisk{name: fmt.Sprint(t.Name(), seed), rng: rand.New(rand.NewPCG(seed, 0)), files: map[string]*simFile{}}
	vfs.Register(d.name, d)
	t.Cleanup(func() { vfs.Unregister(d.name) })
	return d
}

// step counts a change. The caller holds mu.
func (d *simDisk) step() error {
	if d.cutIn > 0 {
		if d.cutIn--; d.cutIn == 0 {
			d.off = true
		}
	}
	if d.off {
		return sqlite3.IOERR
	}
	return nil
}

// reboot brings the power back: of what was not synced, anything may be there.
func (d *simDisk) reboot() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		data, keep := append([]byte(nil), f.durable...), d.rng.IntN(101)
		for _, c := range f.pending {
			if c.data == nil {
				if d.rng.IntN(100) < keep {
					data = resize(data, c.off)
				}
				continue
			}
			for at := int64(0); at < int64(len(c.data)); {
				n := min(sector-(c.off+at)%sector, int64(len(c.data))-at)
				if d.rng.IntN(100) < keep {
					if end := c.off + at + n; end > int64(len(data)) {
						data = resize(data, end)
					}
					copy(data[c.off+at:], c.data[at:at+n])
				}
				at += n
			}
		}
		f.live, f.durable, f.pending = data, append([]byte(nil), data...), nil
	}
	d.off, d.cutIn, d.eioIn = false, 0, 0
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func (d *simDisk) Open(name string, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, flags, sqlite3.CANTOPEN
	}
	f := d.files[name]
	if f == nil {
		f = new(simFile) // names are durable at once
		d.files[name] = f
	}
	h := &simHandle{disk: d, file: f}
	if flags&vfs.OPEN_MAIN_DB != 0 {
		h.index = vfs.NewSharedMemory(name+"-shm", flags)
	}
	return h, flags, nil
}

func (d *simDisk) Delete(name string, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	delete(d.files, name)
	return nil
}

func (d *simDisk) Access(name string, _ vfs.AccessFlag) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files[name] != nil, nil
}

func (d *simDisk) FullPathname(name string) (string, error) { return name, nil }

// simHandle is one connection's handle of a file. Locks on the database are
// those of its index: all connections use the log.
type simHandle struct {
	disk  *simDisk
	file  *simFile
	index vfs.SharedMemory
}

func (h *simHandle) SharedMemory() vfs.SharedMemory { return h.index }

func (h *simHandle) Close() error {
	if h.index != nil {
		return h.index.Close()
	}
	return nil
}

func (h *simHandle) ReadAt(p []byte, off int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if h.disk.off {
		return 0, sqlite3.IOERR_READ
	}
	if off >= int64(len(h.file.live)) {
		return 0, io.EOF
	}
	n := copy(p, h.file.live[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *simHandle) WriteAt(p []byte, off int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	last := h.disk.cutIn == 1 // a cut in the middle of a write leaves some of it
	if err := h.disk.step(); err != nil && !last {
		return 0, err
	}
	if grow := int(off) + len(p) - len(h.file.live); h.disk.quota > 0 && grow > 0 {
		used := 0
		for _, f := range h.disk.files {
			used += len(f.live)
		}
		if used+grow > h.disk.quota {
			return 0, vfs.SystemError(syscall.ENOSPC, sqlite3.FULL)
		}
	}
	h.file.live = resize(h.file.live, max(int64(len(h.file.live)), off+int64(len(p))))
	copy(h.file.live[off:], p)
	h.file.pending = append(h.file.pending, simChange{off, append([]byte{}, p...)})
	if last {
		return 0, sqlite3.IOERR_WRITE
	}
	return len(p), nil
}

func (h *simHandle) Truncate(size int64) error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if err := h.disk.step(); err != nil {
		return err
	}
	h.file.live = resize(h.file.live, size)
	h.file.pending = append(h.file.pending, simChange{size, nil})
	return nil
}

func (h *simHandle) Sync(vfs.SyncFlag) error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if err := h.disk.step(); err != nil {
		return err
	}
	if h.disk.eioIn > 0 {
		if h.disk.eioIn--; h.disk.eioIn == 0 {
			return vfs.SystemError(syscall.EIO, sqlite3.IOERR_FSYNC)
		}
	}
	h.file.durable, h.file.pending = append(h.file.durable[:0], h.file.live...), nil
	return nil
}

func (h *simHandle) Size() (int64, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	return int64(len(h.file.live)), nil
}

func (h *simHandle) Lock(vfs.LockLevel) error         { return nil }
func (h *simHandle) Unlock(vfs.LockLevel) error       { return nil }
func (h *simHandle) CheckReservedLock() (bool, error) { return false, nil }
func (h *simHandle) SectorSize() int                  { return sector }
func (h *simHandle) DeviceCharacteristics() vfs.DeviceCharacteristic {
	return vfs.IOCAP_POWERSAFE_OVERWRITE
}

// open opens a service on the disk.
func (d *simDisk) open(t testing.TB, path string) (*mailbox.Service, error) {
	cfg := mailbox.Config{Path: path, Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Limits: mailbox.Limits{SourceRate: fast}}
	return mailbox.OpenWith(t.Context(), cfg, d.name, mailbox.Migrations)
}

// G15, FS-02: the power goes at any point, again and again. What a receipt was
// given for is there; what is there is whole (docs/spec/mailbox.md, section 8).
func TestG15_PowerLoss(t *testing.T) {
	for seed := range uint64(soak(12, 2000)) {
		powerLoss(t, seed)
	}
}

func powerLoss(t *testing.T, seed uint64) {
	t.Helper()
	disk, path := newSimDisk(t, seed), filepath.Join(t.TempDir(), "mailbox.db")
	defer vfs.Unregister(disk.name)
	s, err := disk.open(t, path)
	if err != nil {
		t.Fatal(err)
	}
	key, tag := newKey(), newTag()
	if err := s.NewBox(key.ID(), tag); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var acked [][]byte
	for cut := range 3 {
		disk.mu.Lock()
		disk.cutIn = 1 + disk.rng.IntN(200)
		disk.mu.Unlock()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					envs := letters(tag, protocol.MinEnvelope, 5)
					got, err := s.Leave(envs...)
					if err != nil {
						return
					}
					mu.Lock()
					for i, why := range got {
						if why == 0 {
							acked = append(acked, envs[i])
						}
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if err := s.Run(t.Context()); err == nil {
			t.Fatalf("seed %d, cut %d: Run says nothing", seed, cut)
		}
		s.Close() // fails: the power is off
		disk.reboot()
		if s, err = disk.open(t, path); err != nil {
			t.Fatalf("seed %d, cut %d: %v", seed, cut, err)
		}
		for i, env := range acked {
			if !s.Has(env) {
				t.Fatalf("seed %d, cut %d: %d of %d acknowledged is lost", seed, cut, i, len(acked))
			}
		}
		if err := s.Check(); err != nil {
			t.Fatalf("seed %d, cut %d: %v", seed, cut, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// FS-03: a sync fails once. From then on nothing is acknowledged, Run says so,
// and what was acknowledged before is there.
func TestG15_SyncFails(t *testing.T) {
	for n := 1; n <= 40; n += soak(6, 1) {
		disk, path := newSimDisk(t, uint64(n)), filepath.Join(t.TempDir(), "mailbox.db")
		s, err := disk.open(t, path)
		if err != nil {
			t.Fatal(err)
		}
		tag := newTag()
		if err := s.NewBox(newKey().ID(), tag); err != nil {
			t.Fatal(err)
		}
		disk.mu.Lock()
		disk.eioIn = n
		disk.mu.Unlock()
		var acked [][]byte
		for {
			env := letter(tag, 64<<10)
			if _, err = s.Leave(env); err != nil {
				break
			}
			acked = append(acked, env)
		}
		if err := s.Run(t.Context()); err == nil {
			t.Fatalf("sync %d failed, and Run says nothing", n)
		}
		if _, err := s.Leave(letter(tag, 1<<10)); err == nil {
			t.Fatalf("sync %d failed, and a deposit is acknowledged", n)
		}
		if st, err := s.NodeStatus(context.Background(), nil); err != nil || st.State != "failed" {
			t.Errorf("the state is %q, %v", st.GetState(), err)
		}
		for _, env := range acked {
			if !s.Has(env) {
				t.Fatalf("sync %d failed, and mail cannot be read", n)
			}
		}
		s.Close() // fails
		disk.reboot()
		if s, err = disk.open(t, path); err != nil {
			t.Fatal(err)
		}
		for _, env := range acked {
			if !s.Has(env) {
				t.Fatalf("sync %d failed: after opening again, acknowledged mail is lost", n)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		vfs.Unregister(disk.name)
	}
}

// P08, FS-04: the disk is full. Mail is refused and not acknowledged, what is
// there can be collected and deleted, and with room again mail is taken.
func TestP08_DiskFull(t *testing.T) {
	disk, path := newSimDisk(t, 1), filepath.Join(t.TempDir(), "mailbox.db")
	s, err := disk.open(t, path)
	if err != nil {
		t.Fatal(err)
	}
	key, tag := newKey(), newTag()
	if err := s.NewBox(key.ID(), tag); err != nil {
		t.Fatal(err)
	}
	disk.mu.Lock()
	disk.quota = 12 << 20
	disk.mu.Unlock()
	var acked [][]byte
	for {
		env := letter(tag, 16<<10)
		if _, err = s.Leave(env); err != nil {
			break
		}
		acked = append(acked, env)
	}
	if len(acked) < 100 {
		t.Fatalf("%d envelopes are taken: %v", len(acked), err)
	}
	for _, env := range acked {
		if !s.Has(env) {
			t.Fatal("what was acknowledged is not there")
		}
	}
	disk.mu.Lock()
	disk.quota = 16 << 20 // what the reserve, on another disk here, gives back
	disk.mu.Unlock()
	for id := range uint64(len(acked) / 2) {
		if err := s.Remove(key.ID(), id+1); err != nil {
			t.Fatalf("deleting: %v", err)
		}
	}
	if why, err := s.Leave(letter(tag, 16<<10)); err != nil || why[0] != 0 {
		t.Errorf("with room again a deposit is refused with %v, %v", why, err)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
