package store

import (
	"crypto/hkdf"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
	"lukechampine.com/adiantum"
	"lukechampine.com/adiantum/hbsh"

	"github.com/kith-im/kith/protocol"
)

// Every file SQLite writes goes through this VFS, which enciphers it in blocks
// of 4096 bytes with Adiantum, a wide-block cipher: the tweak is the block's
// position and the kind of file, and a change of one bit anywhere in a block
// changes all of it. Blocks of the database are pages and carry a checksum
// inside (see createDatabase), so altered ones are found. Old blocks put back in their
// place are not: docs/decisions/0010 says what this protects and what not.
//
// Four rules:
//   - A write of part of a block rewrites the whole block, so nobody may read
//     that block meanwhile. Frames of the log straddle blocks; without the
//     locks below, readers got noise.
//   - For the same reason a power cut destroys the neighbours of what was being
//     written. SQLite keeps to itself what shares a sector with something
//     synced if it is told that sectors have 4096 bytes and that overwriting
//     is not safe against a power cut.
//   - A file cut off in the middle of a block ends at the block before.
//   - The key is never in a file name, a URI or SQL, where other code could see it.
const blockSize = 4096

// fileKind separates the same position in different files.
type fileKind byte

const (
	kindDatabase fileKind = iota + 1
	kindLog
	kindJournal
)

// stripes is how many locks the blocks of a file share.
const stripes = 64

// cryptVFS serves the one database of one open store. That the store's lock
// keeps other processes out makes locks inside the process enough.
type cryptVFS struct {
	name    string
	disk    disk
	key     func() []byte
	locks   dbLock
	stripes [kindJournal + 1][stripes]sync.RWMutex
	log     logEnd
	broken  atomic.Pointer[error] // the first write or sync that failed
}

var _ vfs.VFS = (*cryptVFS)(nil)

// newCryptVFS registers a VFS whose key is derived from the data key.
func newCryptVFS(d disk, dataKey func() []byte) *cryptVFS {
	v := &cryptVFS{disk: d, key: func() []byte {
		return mustHKDF(dataKey(), protocol.LabelStorePages)
	}}
	v.name = fmt.Sprintf("kith-%p", v)
	vfs.Register(v.name, v)
	return v
}

func (v *cryptVFS) unregister() { vfs.Unregister(v.name) }

// failure returns the first error of a write or a sync, except for want of space.
func (v *cryptVFS) failure() error {
	if p := v.broken.Load(); p != nil {
		return *p
	}
	return nil
}

// note remembers err, if it is one, and gives it the code SQLite expects.
func (v *cryptVFS) note(err error, code sqlite3.ExtendedErrorCode) error {
	if err == nil {
		return nil
	}
	if noSpace(err) {
		if code != sqlite3.IOERR_FSYNC {
			return vfs.SystemError(err, sqlite3.FULL)
		}
		// Space promised when it was written is missing when it is synced:
		// what was lost is as unknown as after any other failed sync.
	}
	v.broken.CompareAndSwap(nil, &err)
	return vfs.SystemError(err, code)
}

func (v *cryptVFS) Open(name string, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f := &cryptFile{vfs: v, name: name, cipher: adiantum.New(v.key())}
	switch {
	case name == "":
		return nil, flags, sqlite3.CANTOPEN
	case flags&vfs.OPEN_MAIN_DB != 0:
		f.kind = kindDatabase
		if err := f.mapIndex(flags); err != nil {
			return nil, flags, vfs.SystemError(err, sqlite3.CANTOPEN)
		}
	case flags&vfs.OPEN_WAL != 0:
		f.kind = kindLog
	case flags&vfs.OPEN_MAIN_JOURNAL != 0:
		f.kind = kindJournal
	default: // temporary files stay in memory (PRAGMA temp_store)
		return nil, flags, sqlite3.CANTOPEN
	}
	create := flags&vfs.OPEN_CREATE != 0
	var err error
	if f.file, err = v.disk.open(name, create); err != nil {
		return nil, flags, vfs.SystemError(err, sqlite3.CANTOPEN)
	}
	f.newName = create
	if f.kind == kindLog {
		v.log.opened(name)
	}
	return f, flags, nil
}

func (v *cryptVFS) Delete(name string, syncDir bool) error {
	if err := v.failure(); err != nil {
		return vfs.SystemError(err, sqlite3.IOERR_DELETE)
	}
	v.log.removed(name)
	err := v.disk.remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return vfs.SystemError(err, sqlite3.IOERR_DELETE_NOENT)
	}
	if err == nil && syncDir {
		if err := v.disk.syncDir(filepath.Dir(name)); err != nil {
			return v.note(err, sqlite3.IOERR_DIR_FSYNC)
		}
	}
	return err
}

func (v *cryptVFS) Access(name string, flags vfs.AccessFlag) (bool, error) {
	return v.disk.exists(name)
}

func (v *cryptVFS) FullPathname(name string) (string, error) { return filepath.Abs(name) }

// cryptFile is one connection's handle of one file.
type cryptFile struct {
	vfs     *cryptVFS
	name    string
	kind    fileKind
	file    diskFile
	newName bool // its directory has not been synced since it may have been created
	cipher  *hbsh.HBSH
	blocks  [2 * blockSize]byte // a page of the log lies in two
	tweak   [9]byte
	index   vfs.SharedMemory
	held    vfs.LockLevel
}

var (
	_ vfs.FileSharedMemory   = (*cryptFile)(nil)
	_ vfs.FileCommitPhaseTwo = (*cryptFile)(nil)
)

// mapIndex prepares the index of the log, which the connections share. Its
// file is created here so that its mode does not depend on the umask.
func (f *cryptFile) mapIndex(flags vfs.OpenFlag) error {
	name := f.name + "-shm"
	shm, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	f.index = vfs.NewSharedMemory(name, flags)
	return shm.Close()
}

func (f *cryptFile) SharedMemory() vfs.SharedMemory { return f.index }

func (f *cryptFile) Close() error {
	if f.index != nil {
		f.index.Close()
	}
	return errors.Join(f.Unlock(vfs.LOCK_NONE), f.file.Close())
}

func (f *cryptFile) stripe(start int64) *sync.RWMutex {
	return &f.vfs.stripes[f.kind][start/blockSize%stripes]
}

func (f *cryptFile) setTweak(start int64) []byte {
	binary.LittleEndian.PutUint64(f.tweak[:], uint64(start))
	f.tweak[8] = byte(f.kind)
	return f.tweak[:]
}

// readBlock deciphers the block at start into b. A block that the file does
// not hold whole is io.EOF. The caller holds the stripe.
func (f *cryptFile) readBlock(b []byte, start int64) error {
	if n, err := f.file.ReadAt(b, start); n < blockSize {
		if err == nil {
			err = io.EOF
		}
		return err
	}
	f.cipher.Decrypt(b, f.setTweak(start))
	return nil
}

func (f *cryptFile) ReadAt(p []byte, off int64) (n int, err error) {
	if f.kind == kindLog {
		return f.readLog(p, off)
	}
	for n < len(p) {
		at := off + int64(n)
		start := at &^ (blockSize - 1)
		b := f.blocks[:blockSize]
		if at == start && len(p)-n >= blockSize {
			b = p[n : n+blockSize]
		}
		lock := f.stripe(start)
		lock.RLock()
		err := f.readBlock(b, start)
		lock.RUnlock()
		if err != nil {
			return n, err
		}
		n += copy(p[n:], b[at-start:])
	}
	return n, nil
}

// WriteAt, like all that changes files, refuses once a write or a sync has
// failed: the log as it was synced is what the next Open shall find.
func (f *cryptFile) WriteAt(p []byte, off int64) (n int, err error) {
	if err := f.vfs.failure(); err != nil {
		return 0, vfs.SystemError(err, sqlite3.IOERR_WRITE)
	}
	if f.kind == kindLog {
		n, err := f.writeLog(p, off)
		return n, f.vfs.note(err, sqlite3.IOERR_WRITE)
	}
	for n < len(p) {
		m, err := f.writeBlock(p[n:], off+int64(n))
		if err != nil {
			return n, f.vfs.note(err, sqlite3.IOERR_WRITE)
		}
		n += m
	}
	return n, nil
}

// writeBlock writes as much of p as belongs into the block that contains at.
func (f *cryptFile) writeBlock(p []byte, at int64) (n int, err error) {
	start := at &^ (blockSize - 1)
	lock := f.stripe(start)
	lock.Lock()
	defer lock.Unlock()
	b := f.blocks[:blockSize]
	if at > start || len(p) < blockSize {
		err := f.readBlock(b, start)
		if errors.Is(err, io.EOF) {
			clear(b)
		} else if err != nil {
			return 0, err
		}
	}
	n = copy(b[at-start:], p)
	f.cipher.Encrypt(b, f.setTweak(start))
	if _, err := f.file.WriteAt(b, start); err != nil {
		return 0, err
	}
	return n, nil
}

// Truncate keeps the block that size ends in: it cannot be cut.
func (f *cryptFile) Truncate(size int64) error {
	if err := f.vfs.failure(); err != nil {
		return vfs.SystemError(err, sqlite3.IOERR_TRUNCATE)
	}
	if f.kind == kindLog {
		if err := f.cutLog(size); err != nil {
			return f.vfs.note(err, sqlite3.IOERR_TRUNCATE)
		}
		return nil
	}
	if err := f.file.Truncate((size + blockSize - 1) &^ (blockSize - 1)); err != nil {
		return f.vfs.note(err, sqlite3.IOERR_TRUNCATE)
	}
	return nil
}

// Size counts whole blocks: what a power cut left of another is no data.
func (f *cryptFile) Size() (int64, error) {
	size, err := f.file.Size()
	if f.kind == kindLog {
		size = max(size, f.vfs.log.size())
	}
	return size &^ (blockSize - 1), err
}

func (f *cryptFile) Sync(vfs.SyncFlag) error {
	if err := f.vfs.failure(); err != nil {
		return vfs.SystemError(err, sqlite3.IOERR_FSYNC)
	}
	if f.kind == kindLog {
		if err := f.settleLog(); err != nil {
			return f.vfs.note(err, sqlite3.IOERR_WRITE)
		}
	}
	if err := f.file.Sync(); err != nil {
		return f.vfs.note(err, sqlite3.IOERR_FSYNC)
	}
	if f.newName {
		if err := f.vfs.disk.syncDir(filepath.Dir(f.name)); err != nil {
			return f.vfs.note(err, sqlite3.IOERR_DIR_FSYNC)
		}
		f.newName = false
	}
	return nil
}

func (f *cryptFile) SectorSize() int { return blockSize }

// DeviceCharacteristics claims nothing, above all not
// vfs.IOCAP_POWERSAFE_OVERWRITE.
func (f *cryptFile) DeviceCharacteristics() vfs.DeviceCharacteristic { return 0 }

// dbLock is SQLite's lock on the database file, for connections of one process.
// In WAL mode all hold SHARED and one at a time asks for more, when it converts
// the database or is the last to close it.
type dbLock struct {
	mu     sync.Mutex
	shared int        // handles that hold SHARED or more
	writer *cryptFile // holds RESERVED, PENDING or EXCLUSIVE
}

func (f *cryptFile) Lock(level vfs.LockLevel) error {
	l := &f.vfs.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case f.held >= level:
		return nil
	case l.writer != nil && l.writer != f && (level > vfs.LOCK_SHARED || l.writer.held >= vfs.LOCK_PENDING):
		return sqlite3.BUSY
	}
	if f.held == vfs.LOCK_NONE {
		l.shared++
	}
	if level == vfs.LOCK_SHARED {
		f.held = level
		return nil
	}
	l.writer = f
	if level == vfs.LOCK_EXCLUSIVE && l.shared > 1 {
		f.held = vfs.LOCK_PENDING
		return sqlite3.BUSY
	}
	f.held = level
	return nil
}

func (f *cryptFile) Unlock(level vfs.LockLevel) error {
	l := &f.vfs.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.held <= level {
		return nil
	}
	if l.writer == f {
		l.writer = nil
	}
	if level == vfs.LOCK_NONE {
		l.shared--
	}
	f.held = level
	return nil
}

func (f *cryptFile) CheckReservedLock() (bool, error) {
	l := &f.vfs.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writer != nil, nil
}

// mustHKDF derives 32 bytes from the data key.
func mustHKDF(key []byte, label string) []byte {
	out, err := hkdf.Key(sha512.New, key, nil, label, 32)
	if err != nil {
		panic("store: " + err.Error()) // only lengths HKDF cannot reach
	}
	return out
}
