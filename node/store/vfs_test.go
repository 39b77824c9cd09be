package store

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
)

func openFile(t *testing.T, v *cryptVFS, name string, kind vfs.OpenFlag) *cryptFile {
	t.Helper()
	f, _, err := v.Open(name, kind|vfs.OPEN_READWRITE|vfs.OPEN_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f.(*cryptFile)
}

func testVFS(t *testing.T) *cryptVFS {
	v := newCryptVFS(osDisk{}, func() []byte { return make([]byte, dataKeySize) })
	t.Cleanup(v.unregister)
	return v
}

// Writes and reads of any position and length agree with a plain slice.
func TestVFSReadsWhatWasWritten(t *testing.T) {
	f := openFile(t, testVFS(t), filepath.Join(t.TempDir(), "f"), vfs.OPEN_WAL)
	rng := rand.New(rand.NewPCG(1, 2))
	var model []byte
	for step := range 2000 {
		off, n := rng.Int64N(int64(len(model))+1), 1+rng.IntN(3*blockSize)
		if step%2 == 0 {
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			if len(model) > 20*blockSize {
				off = rng.Int64N(10 * blockSize)
			}
			if _, err := f.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			model = resize(model, max(int64(len(model)), off+int64(n)))
			copy(model[off:], p)
			continue
		}
		p := make([]byte, min(n, len(model)-int(off)))
		if _, err := f.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, model[off:off+int64(len(p))]) {
			t.Fatalf("step %d: read other than written at %d", step, off)
		}
	}
	size, err := f.Size()
	if want := (int64(len(model)) + blockSize - 1) / blockSize * blockSize; err != nil || size != want {
		t.Fatalf("size %d (%v), want %d", size, err, want)
	}
	if n, err := f.ReadAt(make([]byte, blockSize), size); n != 0 || err != io.EOF {
		t.Fatalf("past the end: %d bytes and %v, want 0 and EOF", n, err)
	}
}

// What is kept of the log's last block is never older than the file: not after
// another handle has written, the log was cut, or a new one has its name.
func TestVFSLogTail(t *testing.T) {
	v, name := testVFS(t), filepath.Join(t.TempDir(), "f")
	a, b := openFile(t, v, name, vfs.OPEN_WAL), openFile(t, v, name, vfs.OPEN_WAL)
	write := func(f *cryptFile, at int64, text string) {
		t.Helper()
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	check := func(f *cryptFile, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != want {
			t.Fatalf("read %q and %v, want %q", got, err, want)
		}
	}
	write(a, 0, "one")
	write(b, 3, "two")
	write(a, 6, "three")
	write(b, blockSize, "another block")
	write(a, 11, "four")
	check(b, "onetwothreefour")
	if err := b.Truncate(0); err != nil {
		t.Fatal(err)
	}
	write(a, 3, "cut")
	check(b, "\x00\x00\x00cut\x00\x00\x00")
	if err := v.Delete(name, false); err != nil {
		t.Fatal(err)
	}
	c := openFile(t, v, name, vfs.OPEN_WAL)
	write(c, 1, "new")
	check(c, "\x00new\x00\x00\x00")
}

// A write that failed leaves the log as it was when it was last committed,
// padding that is not on the disk included.
func TestVFSLogTailAfterFullDisk(t *testing.T) {
	disk := newSimDisk(1)
	v := newCryptVFS(disk, func() []byte { return make([]byte, dataKeySize) })
	defer v.unregister()
	dir := t.TempDir() // for the index; the rest is on the simulated disk
	db, f := openFile(t, v, filepath.Join(dir, "db"), vfs.OPEN_MAIN_DB), openFile(t, v, filepath.Join(dir, "log"), vfs.OPEN_WAL)
	write := func(text string, at int64) {
		t.Helper()
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	read := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != want {
			t.Fatalf("read %q and %v, want %q", got, err, want)
		}
	}
	for _, rest := range []string{"", "rest"} {
		write("old", 0)
		if err := f.Sync(0); err != nil {
			t.Fatal(err)
		}
		if rest != "" {
			write(rest, 3)
		}
		if err := db.CommitPhaseTwo(); err != nil {
			t.Fatal(err)
		}
		disk.quota = disk.used()
		if err := f.Sync(0); err != nil {
			t.Fatal("padding alone needed room:", err)
		}
		write("lost", 7)
		write("lost", blockSize)
		if err := f.Sync(0); err == nil || v.failure() != nil {
			t.Fatalf("writing to a full disk: %v, and the store failed with %v", err, v.failure())
		}
		read("old" + rest + "\x00\x00")
		disk.quota = 0
		write("new", 7)
		if err := f.Sync(0); err != nil {
			t.Fatal(err)
		}
		read(("old" + rest + "\x00\x00\x00\x00")[:7] + "new\x00\x00")
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
	}
}

// The same block in another file, at another place or under another key is
// another.
func TestVFSKindsAndPositions(t *testing.T) {
	dir := t.TempDir()
	page := bytes.Repeat([]byte("page"), blockSize/4)
	seen := map[string]string{}
	check := func(what string, v *cryptVFS, kind vfs.OpenFlag) {
		name := filepath.Join(dir, what)
		f := openFile(t, v, name, kind)
		for at := int64(0); at < 3*blockSize; at += blockSize {
			if _, err := f.WriteAt(page, at); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(0); err != nil {
				t.Fatal(err)
			}
			raw := make([]byte, blockSize)
			if _, err := f.file.ReadAt(raw, at); err != nil {
				t.Fatal(err)
			}
			if other, ok := seen[string(raw)]; ok {
				t.Errorf("%s has the same block as %s", what, other)
			}
			seen[string(raw)] = what
		}
	}
	v := testVFS(t)
	check("database", v, vfs.OPEN_MAIN_DB)
	check("log", v, vfs.OPEN_WAL)
	check("journal", v, vfs.OPEN_MAIN_JOURNAL)
	other := newCryptVFS(osDisk{}, func() []byte { return bytes.Repeat([]byte{1}, dataKeySize) })
	defer other.unregister()
	check("other", other, vfs.OPEN_MAIN_DB)
}

// SQLite's temporary files have no place on the disk.
func TestVFSRefusesTemporaryFiles(t *testing.T) {
	v := testVFS(t)
	for _, kind := range []vfs.OpenFlag{vfs.OPEN_TEMP_DB, vfs.OPEN_TRANSIENT_DB, vfs.OPEN_TEMP_JOURNAL, vfs.OPEN_SUBJOURNAL, vfs.OPEN_SUPER_JOURNAL} {
		if _, _, err := v.Open(filepath.Join(t.TempDir(), "f"), kind|vfs.OPEN_READWRITE|vfs.OPEN_CREATE); err == nil {
			t.Errorf("kind %#x was opened", kind)
		}
	}
}

func TestVFSLocks(t *testing.T) {
	v := testVFS(t)
	name := filepath.Join(t.TempDir(), "f")
	a, b := openFile(t, v, name, vfs.OPEN_MAIN_DB), openFile(t, v, name, vfs.OPEN_MAIN_DB)
	for i, step := range []struct {
		f    *cryptFile
		lock bool
		to   vfs.LockLevel
		busy bool
	}{
		{a, true, vfs.LOCK_SHARED, false},
		{b, true, vfs.LOCK_SHARED, false},
		{a, true, vfs.LOCK_RESERVED, false},
		{b, true, vfs.LOCK_RESERVED, true},
		{a, true, vfs.LOCK_EXCLUSIVE, true}, // b still reads; a is pending now
		{b, false, vfs.LOCK_NONE, false},
		{b, true, vfs.LOCK_SHARED, true},
		{a, true, vfs.LOCK_EXCLUSIVE, false},
		{b, true, vfs.LOCK_SHARED, true},
		{a, false, vfs.LOCK_SHARED, false},
		{b, true, vfs.LOCK_SHARED, false},
		{a, false, vfs.LOCK_NONE, false},
		{b, true, vfs.LOCK_EXCLUSIVE, false},
	} {
		var err error
		if step.lock {
			err = step.f.Lock(step.to)
		} else {
			err = step.f.Unlock(step.to)
		}
		if busy := errors.Is(err, sqlite3.BUSY); busy != step.busy || (err != nil && !busy) {
			t.Fatalf("step %d: got %v, want busy %v", i, err, step.busy)
		}
	}
}
