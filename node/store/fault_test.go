package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"lukechampine.com/adiantum"
)

// soak says how often a test repeats: few times in the suite, many with
// KITH_SOAK=1.
func soak(few, many int) int {
	if os.Getenv("KITH_SOAK") != "" {
		return many
	}
	return few
}

// tearingDisk writes in two halves and now and then lets others run between them.
type tearingDisk struct {
	osDisk
	writes *atomic.Int64
}

type tearingFile struct {
	diskFile
	writes *atomic.Int64
}

func (d tearingDisk) open(path string, create bool) (diskFile, error) {
	f, err := d.osDisk.open(path, create)
	return tearingFile{f, d.writes}, err
}

func (f tearingFile) WriteAt(p []byte, off int64) (int, error) {
	half := len(p) / 2
	if n, err := f.diskFile.WriteAt(p[:half], off); err != nil {
		return n, err
	}
	if f.writes.Add(1)%8 == 0 {
		runtime.Gosched()
	}
	n, err := f.diskFile.WriteAt(p[half:], off+int64(half))
	return half + n, err
}

// Readers beside a writer and its checkpoints see whole pages and whole
// transactions. The stock encrypting VFS fails this, if rarely, even on a disk
// that does not tear.
func TestTornReads(t *testing.T) {
	e := testEngine()
	e.disk = tearingDisk{writes: new(atomic.Int64)}
	s := openTest(t, t.TempDir(), e)
	ctx, stop := context.WithTimeout(t.Context(), time.Duration(soak(500, 120_000))*time.Millisecond)
	defer stop()
	var wg sync.WaitGroup
	var next int64
	wg.Go(func() {
		for ctx.Err() == nil {
			next++
			err := s.Update(context.Background(), func(tx *Tx) error {
				if next%50 == 0 {
					tx.Erased()
				}
				if old := next - 40; old > 0 {
					if _, err := tx.exec(`DELETE FROM items WHERE id = ?`, old); err != nil {
						return err
					}
					if _, err := tx.exec(`UPDATE sums SET n = n - 1, total = total - ?`, old); err != nil {
						return err
					}
				}
				return put(tx, next, bodyOf(next))
			})
			if err != nil {
				t.Error("write:", err)
				return
			}
		}
	})
	var views [readers]int
	for r := range readers {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := s.View(context.Background(), func(tx *Tx) error { _, err := ids(tx); return err })
				if err != nil {
					t.Error("read:", err)
					return
				}
				views[r]++
			}
		})
	}
	wg.Wait()
	t.Logf("%d updates, %v views", next, views)
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// FS-02, I02: the power goes at any point, again and again.
func TestFS02_PowerLoss(t *testing.T) {
	seeds := soak(50, 5000)
	var wg sync.WaitGroup
	work := make(chan uint64)
	for range 4 {
		wg.Go(func() {
			for seed := range work {
				powerLoss(t, seed)
			}
		})
	}
	for seed := range uint64(seeds) {
		work <- seed
	}
	close(work)
	wg.Wait()
}

func powerLoss(t *testing.T, seed uint64) {
	dir := t.TempDir()
	e := testEngine()
	disk := newSimDisk(seed)
	e.disk = disk
	s, err := open(Options{Dir: dir}, e)
	if err != nil {
		t.Errorf("seed %d: %v", seed, err)
		return
	}
	var mu sync.Mutex
	acked, tried := map[int64]bool{}, map[int64]bool{}
	next := int64(0)
	for cut := range 3 {
		disk.mu.Lock()
		disk.cutIn = 1 + disk.rng.IntN(400)
		disk.mu.Unlock()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					mu.Lock()
					next++
					id := next
					tried[id] = true
					mu.Unlock()
					err := s.Update(context.Background(), func(tx *Tx) error {
						if id%11 == 0 {
							tx.Erased()
						}
						return put(tx, id, bodyOf(id))
					})
					if err != nil {
						return
					}
					mu.Lock()
					acked[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		s.Close() // fails: the power is off
		disk = disk.reboot()
		e.disk = disk
		if s, err = open(Options{Dir: dir}, e); err != nil {
			t.Errorf("seed %d, cut %d: %v", seed, cut, err)
			return
		}
		var got []int64
		err := s.View(t.Context(), func(tx *Tx) (err error) { got, err = ids(tx); return err })
		if err == nil {
			err = s.Check(t.Context())
		}
		if err != nil {
			t.Errorf("seed %d, cut %d: %v", seed, cut, err)
			break
		}
		found := map[int64]bool{}
		for _, id := range got {
			found[id] = true
			if !tried[id] {
				t.Errorf("seed %d, cut %d: item %d out of nowhere", seed, cut, id)
			}
		}
		for id := range acked {
			if !found[id] {
				t.Errorf("seed %d, cut %d: acknowledged item %d lost", seed, cut, id)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
}

// The power goes while a store is created: there is no store, or a whole one.
func TestFS02_PowerLossDuringCreate(t *testing.T) {
	for cut := 1; ; cut += soak(3, 1) {
		dir := t.TempDir()
		e := testEngine()
		disk := newSimDisk(uint64(cut))
		disk.cutIn = cut
		e.disk = disk
		s, err := open(Options{Dir: dir}, e)
		if err == nil {
			s.Close()
		}
		existed := Exists(dir)
		e.disk = disk.reboot()
		if s, err = open(Options{Dir: dir}, e); err != nil {
			t.Fatalf("cut after %d operations, store existed %v: %v", cut, existed, err)
		}
		all(t, s)
		s.Close()
		if disk.cutIn > 0 {
			break // the power outlasted create
		}
	}
}

// FS-03, I03: a sync fails once.
func TestFS03_SyncFails(t *testing.T) {
	for n := 1; n <= 50; n += soak(3, 1) {
		e := testEngine()
		disk := newSimDisk(uint64(n))
		e.disk = disk
		dir := t.TempDir()
		s := openTest(t, dir, e)
		disk.mu.Lock()
		disk.eioIn = n
		disk.mu.Unlock()
		var acked []int64
		var err error
		for id := int64(1); id <= 60 && err == nil; id++ {
			err = s.Update(t.Context(), func(tx *Tx) error {
				if id%10 == 0 {
					tx.Erased()
				}
				return put(tx, id, bodyOf(id))
			})
			if err == nil {
				acked = append(acked, id)
			}
		}
		if !errors.Is(err, ErrReadOnly) {
			t.Fatalf("sync %d failed: got %v, want ErrReadOnly", n, err)
		}
		select {
		case <-s.Failed():
		default:
			t.Fatalf("sync %d failed, and Failed is still open", n)
		}
		before := disk.changes()
		if err := add(s, 1000); !errors.Is(err, ErrReadOnly) {
			t.Fatalf("update after the failure: got %v, want ErrReadOnly", err)
		}
		if got := all(t, s); !subset(acked, got) {
			t.Fatalf("sync %d failed: %v are readable, want %v", n, got, acked)
		}
		s.Close() // reports the failure again
		if disk.changes() != before {
			t.Errorf("the disk was changed after sync %d had failed", n)
		}
		e.disk = disk.reboot()
		s = openTest(t, dir, e)
		if got := all(t, s); !subset(acked, got) {
			t.Fatalf("sync %d failed: after reopening %v, want %v", n, got, acked)
		}
		s.Close()
	}
}

func subset(part, whole []int64) bool {
	return !slices.ContainsFunc(part, func(id int64) bool { return !slices.Contains(whole, id) })
}

// FS-04, I04: the disk fills up. Reading and deleting go on, and writing goes
// on once there is room.
func TestFS04_DiskFull(t *testing.T) {
	// Some sizes end between a commit's last frame and the padding after it.
	for blocks := range int64(soak(4, 200)) {
		diskFull(t, reserveSize+1<<20+blocks*blockSize)
	}
}

// FS-04: kith was killed while the log was at its largest, and the disk is
// full: the reserve is enough to open.
func TestFS04_FullAtOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the log is not emptied for want of work
		e := testEngine()
		disk := newSimDisk(1)
		e.disk = disk
		dir := t.TempDir()
		s := openTest(t, dir, e)
		const items, pages = 9, logPages / 10
		for id := range int64(items) {
			body := bytes.Repeat([]byte{byte(id)}, pages*blockSize)
			if err := s.Update(t.Context(), func(tx *Tx) error { return put(tx, id, body) }); err != nil {
				t.Fatal(err)
			}
		}
		disk.mu.Lock()
		log := len(disk.live[filepath.Join(s.dir, databaseName+"-wal")].live)
		disk.off = true
		disk.mu.Unlock()
		s.Close() // fails: it was killed
		if log < items*pages*blockSize {
			t.Fatalf("the log has %d bytes, want %d or more", log, items*pages*blockSize)
		}
		disk.off, disk.quota = false, disk.used()
		s = openTest(t, dir, e)
		defer s.Close()
		var n int
		err := s.View(t.Context(), func(tx *Tx) error { return tx.queryRow(`SELECT count(*) FROM items`).scan(&n) })
		if err != nil || n != items {
			t.Fatalf("%d items and %v, want %d", n, err, items)
		}
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func diskFull(t *testing.T, size int64) {
	e := testEngine()
	disk := newSimDisk(1)
	e.disk = disk
	dir := t.TempDir()
	s := openTest(t, dir, e)
	disk.mu.Lock()
	disk.quota = size
	disk.mu.Unlock()
	var acked []int64
	fill := func() {
		t.Helper()
		for id := int64(len(acked)) * 10; ; id++ {
			err := add(s, id)
			if errors.Is(err, ErrFull) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			acked = append(acked, id)
		}
	}
	fill()
	if got := all(t, s); !slices.Equal(got, acked) {
		t.Fatalf("full: %d items readable, want %d", len(got), len(acked))
	}
	// Somebody else takes what the log gave back.
	disk.mu.Lock()
	disk.quota = disk.used()
	disk.mu.Unlock()
	gone := acked[:len(acked)/2]
	for _, id := range gone {
		err := s.Reclaim(t.Context(), func(tx *Tx) error {
			if _, err := tx.exec(`DELETE FROM items WHERE id = ?`, id); err != nil {
				return err
			}
			_, err := tx.exec(`UPDATE sums SET n = n - 1, total = total - ?`, id)
			return err
		})
		if err != nil {
			t.Fatalf("deleting on a full disk: %v", err)
		}
	}
	acked = acked[len(gone):]
	if got := all(t, s); !slices.Equal(got, acked) {
		t.Fatalf("after deleting: %d items, want %d", len(got), len(acked))
	}
	disk.mu.Lock()
	disk.quota = size + 1<<20
	disk.mu.Unlock()
	before := len(acked)
	fill()
	if len(acked) == before {
		t.Fatal("nothing could be written after there was room")
	}
	select {
	case <-s.Failed():
		t.Fatal("the store failed; a full disk is no failure")
	default:
	}
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openTest(t, dir, e)
	if got := all(t, s); !slices.Equal(got, acked) {
		t.Fatalf("after reopening: %d items, want %d", len(got), len(acked))
	}
}

// A store that found no room to be created leaves nothing behind that counts.
func TestFS04_NoRoomToCreate(t *testing.T) {
	e := testEngine()
	disk := newSimDisk(1)
	disk.quota = 8 << 10
	e.disk = disk
	dir := t.TempDir()
	if _, err := open(Options{Dir: dir}, e); !errors.Is(err, ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	disk.quota = 0
	openTest(t, dir, e)
}

// FS-05, I05: whatever happens to the files, it is noticed, what is read is
// what was written, and no store is made in place of the damaged one.
func TestFS05_Corruption(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, dir, testEngine())
	for id := range int64(120) {
		if err := add(s, id); err != nil {
			t.Fatal(err)
		}
	}
	want := all(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, storeName, databaseName)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(5, 5))
	pages := len(whole) / blockSize
	atOpen, unharmed := 0, 0
	for trial := range soak(100, 2000) {
		data := bytes.Clone(whole)
		var what string
		switch page := rng.IntN(pages) * blockSize; trial % 5 {
		case 0, 1:
			bit := rng.IntN(len(data) * 8)
			what = fmt.Sprintf("bit %d flipped", bit)
			data[bit/8] ^= 1 << (bit % 8)
		case 2:
			n := rng.IntN(len(data))
			what = fmt.Sprintf("cut to %d bytes", n)
			data = data[:n]
		case 3:
			what = fmt.Sprintf("page at %d zeroed", page)
			clear(data[page : page+blockSize])
		case 4:
			other := (page + blockSize*(1+rng.IntN(pages-1))) % len(data)
			what = fmt.Sprintf("page at %d replaced by the one at %d", page, other)
			copy(data[page:page+blockSize], whole[other:])
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := open(Options{Dir: dir}, testEngine())
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s: opening: got %v, want ErrDamaged", what, err)
			}
			atOpen++
			if left, err := os.ReadFile(name); err != nil || !bytes.Equal(left, data) {
				t.Fatalf("%s: Open refused the database and changed it all the same", what)
			}
			continue
		}
		if err := s.Check(t.Context()); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: check: got %v, want ErrDamaged", what, err)
		}
		// Rows on other pages are still there, and none is wrong.
		for _, id := range want {
			var body []byte
			err := s.View(t.Context(), func(tx *Tx) error {
				return tx.queryRow(`SELECT body FROM items WHERE id = ?`, id).scan(&body)
			})
			switch {
			case err == nil && bytes.Equal(body, bodyOf(id)):
				unharmed++
			case err == nil, !errors.Is(err, ErrDamaged):
				t.Errorf("%s: item %d: got %v and %d bytes", what, id, err, len(body))
			}
		}
		s.Close()
	}
	t.Logf("%d trials ended at Open; of the others' rows %d were unharmed", atOpen, unharmed)
	if unharmed == 0 {
		t.Error("no row survived any damage")
	}
}

// A missing file is damage as well.
func TestFS05_MissingFiles(t *testing.T) {
	tests := []struct {
		remove []string
		ok     bool
	}{
		{[]string{databaseName}, false},
		{[]string{"key.0", "key.1"}, false},
		{[]string{"key.0"}, true},
		{[]string{"key.1"}, true},
		{[]string{reserveName}, true},
		{[]string{databaseName, "key.0", "key.1", reserveName}, false},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.remove), func(t *testing.T) {
			dir := t.TempDir()
			s := openTest(t, dir, testEngine())
			if err := add(s, 1); err != nil {
				t.Fatal(err)
			}
			s.Close()
			for _, name := range test.remove {
				if err := os.Remove(filepath.Join(dir, storeName, name)); err != nil {
					t.Fatal(err)
				}
			}
			s, err := open(Options{Dir: dir}, testEngine())
			if !test.ok {
				if !errors.Is(err, ErrDamaged) {
					t.Fatalf("got %v, want ErrDamaged", err)
				}
				if _, err := os.Stat(filepath.Join(dir, storeName, test.remove[0])); err == nil {
					t.Fatal("a missing file was made anew")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if got := all(t, s); !slices.Equal(got, []int64{1}) {
				t.Fatalf("items %v, want [1]", got)
			}
		})
	}
}

// A database of ours that has no schema is not one to begin anew in.
func TestFS05_NoSchema(t *testing.T) {
	dir := t.TempDir()
	e := testEngine()
	e.schema = fstest.MapFS{}
	if _, err := open(Options{Dir: dir}, e); !errors.Is(err, ErrDamaged) {
		t.Fatalf("without any schema: got %v, want ErrDamaged", err)
	}
	if _, err := open(Options{Dir: dir}, testEngine()); !errors.Is(err, ErrDamaged) {
		t.Fatalf("with a schema: got %v, want ErrDamaged", err)
	}
}

// A database beside the key file of another store.
func TestFS05_ForeignKeyFile(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	openTest(t, a, testEngine()).Close()
	openTest(t, b, testEngine()).Close()
	for _, name := range keyFileNames {
		data, err := os.ReadFile(filepath.Join(a, storeName, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b, storeName, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := open(Options{Dir: b}, testEngine()); !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v, want ErrDamaged", err)
	}
}

// crashCopy copies a store that is open, as a kill would leave it.
func crashCopy(t *testing.T, s *Store) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, storeName), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"key.0", "key.1", databaseName, databaseName + "-wal"} {
		data, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, storeName, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// I01, I02: a log that was cut short or altered anywhere opens, and what it
// holds is what was committed up to some point. The stock VFS refuses most
// lengths.
func TestI01_LogTail(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	for id := range int64(40) {
		if err := add(s, id); err != nil {
			t.Fatal(err)
		}
	}
	dir := crashCopy(t, s)
	logName, dbName := filepath.Join(dir, storeName, databaseName+"-wal"), filepath.Join(dir, storeName, databaseName)
	log, err := os.ReadFile(logName)
	if err != nil {
		t.Fatal(err)
	}
	db, err := os.ReadFile(dbName)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for trial := range soak(100, 2000) {
		data := bytes.Clone(log)
		what := "whole"
		switch {
		case trial == 0:
		case trial%2 == 0:
			data = data[:rng.IntN(len(data))]
			what = fmt.Sprintf("cut to %d of %d", len(data), len(log))
		default:
			bit := rng.IntN(len(data) * 8)
			data[bit/8] ^= 1 << (bit % 8)
			what = fmt.Sprintf("bit %d flipped", bit)
		}
		for name, data := range map[string][]byte{logName: data, dbName: db} {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := open(Options{Dir: dir}, testEngine())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got := all(t, s)
		for i, id := range got {
			if int64(i) != id {
				t.Fatalf("%s: items %v have a gap", what, got)
			}
		}
		if trial == 0 && len(got) != 40 {
			t.Fatalf("whole log: %d items, want 40", len(got))
		}
		s.Close()
	}
}

// plaintext deciphers a file of the store.
func plaintext(t *testing.T, s *Store, name string, kind fileKind) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	f := &cryptFile{kind: kind, cipher: adiantum.New(s.vfs.key())}
	for start := 0; start < len(data); start += blockSize {
		f.cipher.Decrypt(data[start:start+blockSize], f.setTweak(int64(start)))
	}
	return data
}

// X12, H19: what was deleted is in no file, not even under the encryption.
func TestX12_DeletedIsGone(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	marker := []byte("MARKER-3f9c")
	count := func() (n int) {
		return bytes.Count(plaintext(t, s, databaseName, kindDatabase), marker) +
			bytes.Count(plaintext(t, s, databaseName+"-wal", kindLog), marker)
	}
	for id := range int64(500) {
		body := slices.Concat(marker, bodyOf(id), marker)
		if err := s.Update(t.Context(), func(tx *Tx) error { return put(tx, id, body) }); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n < 1000 {
		t.Fatalf("%d markers before deleting, want at least 1,000", n)
	}
	err := s.Update(t.Context(), func(tx *Tx) error {
		tx.Erased()
		_, err := tx.exec(`DELETE FROM items`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := logSize(t, s); n != 0 {
		t.Errorf("the log has %d bytes, want 0", n)
	}
	if n := count(); n != 0 {
		t.Errorf("%d markers after deleting, want 0", n)
	}
}

// H20: the files of a store show nothing of its content.
func TestH20_FilesAreOpaque(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	for id := range int64(100) {
		if err := add(s, id); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{databaseName, databaseName + "-wal", databaseName + "-shm"} {
		data, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"body of", "SQLite", "CREATE", "items"} {
			if bytes.Contains(data, []byte(word)) {
				t.Errorf("%s contains %q", name, word)
			}
		}
	}
}

// What a closure left in memory is taken back when its change is: not when the
// closure failed, and not when it is committed.
func TestUndone(t *testing.T) {
	e := testEngine()
	disk := newSimDisk(1)
	e.disk = disk
	s := openTest(t, t.TempDir(), e)
	undone := 0
	update := func(id int64, result error) error {
		return s.Update(t.Context(), func(tx *Tx) error {
			tx.OnUndo(func() { undone++ })
			return errors.Join(put(tx, id, bytes.Repeat([]byte("body"), 16*blockSize)), result)
		})
	}
	if err := update(1, nil); err != nil || undone != 0 {
		t.Fatalf("committed: %v, undone %d times", err, undone)
	}
	if err := update(2, errors.New("no")); err == nil || undone != 0 {
		t.Fatalf("closure failed: %v, undone %d times", err, undone)
	}
	disk.mu.Lock()
	disk.quota = disk.used()
	disk.mu.Unlock()
	if err := update(3, nil); !errors.Is(err, ErrFull) || undone != 1 {
		t.Fatalf("full disk: %v, undone %d times, want once", err, undone)
	}
}
