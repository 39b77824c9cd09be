package store

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// simDisk is a disk that fails on request. What is written to it reaches
// "durable" only by a sync; a power cut leaves any mixture of the sectors
// written since, and of the names made or removed since.
type simDisk struct {
	mu      sync.Mutex
	rng     *rand.Rand
	live    map[string]*simFile
	durable map[string]*simFile

	cutIn int   // power goes after so many more operations; 0: never
	off   bool  // it has gone
	quota int64 // bytes in all; 0: no limit
	eioIn int   // the so many-th next sync fails with EIO; 0: none
	made  int   // changes and syncs so far
}

const sectorSize = 512

var errPower = errors.New("power is off")

// simFile is the content of one file: as programs see it, as it is on the
// disk, and the changes between the two.
type simFile struct {
	live    []byte
	durable []byte
	pending []simChange
}

type simChange struct {
	off  int64
	data []byte // nil: truncated to off
}

func newSimDisk(seed uint64) *simDisk {
	return &simDisk{rng: rand.New(rand.NewPCG(seed, 0)), live: map[string]*simFile{}, durable: map[string]*simFile{}}
}

// step counts an operation. The caller holds mu.
func (d *simDisk) step() error {
	if d.cutIn > 0 {
		if d.cutIn--; d.cutIn == 0 {
			d.off = true
		}
	}
	if d.off {
		return errPower
	}
	return nil
}

// reboot returns the disk as it may be found after the power cut.
func (d *simDisk) reboot() *simDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	after := &simDisk{rng: d.rng, live: map[string]*simFile{}, durable: map[string]*simFile{}, quota: d.quota}
	names := map[string]bool{}
	for name := range d.live {
		names[name] = true
	}
	for name := range d.durable {
		names[name] = true
	}
	for name := range names {
		f := d.durable[name]
		if d.live[name] != f && d.rng.IntN(2) == 0 {
			f = d.live[name]
		}
		if f == nil {
			continue
		}
		data := f.survivor(d.rng)
		after.live[name] = &simFile{live: data, durable: append([]byte(nil), data...)}
		after.durable[name] = after.live[name]
	}
	return after
}

// survivor is the durable content with some of the pending sectors.
func (f *simFile) survivor(rng *rand.Rand) []byte {
	data := append([]byte(nil), f.durable...)
	keep := rng.IntN(101) // percent: often nearly all or nearly none
	for _, c := range f.pending {
		if c.data == nil {
			if rng.IntN(100) < keep {
				data = resize(data, c.off)
			}
			continue
		}
		for at := int64(0); at < int64(len(c.data)); {
			n := min(sectorSize-(c.off+at)%sectorSize, int64(len(c.data))-at)
			if rng.IntN(100) < keep {
				if end := c.off + at + n; end > int64(len(data)) {
					data = resize(data, end)
				}
				copy(data[c.off+at:], c.data[at:at+n])
			}
			at += n
		}
	}
	return data
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func (d *simDisk) changes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made
}

func (d *simDisk) used() (n int64) {
	for _, f := range d.live {
		n += int64(len(f.live))
	}
	return n
}

func (d *simDisk) open(path string, create bool) (diskFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return nil, err
	}
	f := d.live[path]
	if f == nil {
		if !create {
			return nil, fs.ErrNotExist
		}
		f = new(simFile)
		d.live[path] = f
	}
	return &simHandle{disk: d, file: f}, nil
}

func (d *simDisk) exists(path string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return false, err
	}
	return d.live[path] != nil, nil
}

func (d *simDisk) remove(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	if d.live[path] == nil {
		return fs.ErrNotExist
	}
	d.made++
	delete(d.live, path)
	return nil
}

func (d *simDisk) removeAll(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	for name := range d.live {
		if strings.HasPrefix(name, dir+string(filepath.Separator)) {
			delete(d.live, name)
		}
	}
	return os.RemoveAll(dir)
}

// rename moves a folder, whose key file is on the real disk. Here it is durable
// at once; were it not, the staging folder would be there again, and count as
// nothing.
func (d *simDisk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	for _, names := range []map[string]*simFile{d.live, d.durable} {
		for name, f := range names {
			if rest, ok := strings.CutPrefix(name, from+string(filepath.Separator)); ok {
				delete(names, name)
				names[filepath.Join(to, rest)] = f
			}
		}
	}
	return os.Rename(from, to)
}

func (d *simDisk) syncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.sync(); err != nil {
		return err
	}
	for name := range d.durable {
		if filepath.Dir(name) == dir && d.live[name] == nil {
			delete(d.durable, name)
		}
	}
	for name, f := range d.live {
		if filepath.Dir(name) == dir {
			d.durable[name] = f
		}
	}
	return nil
}

// sync is what files and folders share. The caller holds mu.
func (d *simDisk) sync() error {
	if err := d.step(); err != nil {
		return err
	}
	d.made++
	if d.eioIn > 0 {
		if d.eioIn--; d.eioIn == 0 {
			return unix.EIO
		}
	}
	return nil
}

type simHandle struct {
	disk *simDisk
	file *simFile
}

func (h *simHandle) ReadAt(p []byte, off int64) (int, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if h.disk.off {
		return 0, errPower
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
	// A cut in the middle of a write leaves some of its sectors.
	last := h.disk.cutIn == 1
	err := h.disk.step()
	if err != nil && !last {
		return 0, err
	}
	grow := off + int64(len(p)) - int64(len(h.file.live))
	if q := h.disk.quota; q > 0 && grow > 0 && h.disk.used()+grow > q {
		return 0, unix.ENOSPC
	}
	if grow > 0 {
		h.file.live = resize(h.file.live, off+int64(len(p)))
	}
	h.disk.made++
	copy(h.file.live[off:], p)
	h.file.pending = append(h.file.pending, simChange{off, append([]byte{}, p...)})
	return len(p), err
}

func (h *simHandle) Truncate(size int64) error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if err := h.disk.step(); err != nil {
		return err
	}
	h.disk.made++
	h.file.live = resize(h.file.live, size)
	h.file.pending = append(h.file.pending, simChange{size, nil})
	return nil
}

func (h *simHandle) Sync() error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if err := h.disk.sync(); err != nil {
		return err
	}
	h.file.durable = append(h.file.durable[:0], h.file.live...)
	h.file.pending = nil
	return nil
}

func (h *simHandle) Size() (int64, error) {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	return int64(len(h.file.live)), h.disk.powered()
}

func (d *simDisk) powered() error {
	if d.off {
		return errPower
	}
	return nil
}

func (h *simHandle) Close() error { return nil }
