package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// cheapKDF keeps the tests fast: what Argon2id costs is not what they are about.
var cheapKDF = kdfParams{passes: 1, kib: 64, lanes: 1}

// testSchema is a schema of the engine's own tests.
var testSchema = fstest.MapFS{
	"schema/0001.sql": {Data: []byte(`
		CREATE TABLE items (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;
		CREATE TABLE sums (id INTEGER PRIMARY KEY CHECK (id = 1), n INTEGER NOT NULL, total INTEGER NOT NULL) STRICT;
		INSERT INTO sums VALUES (1, 0, 0);`)},
}

func testEngine() engine { return engine{disk: osDisk{}, kdf: cheapKDF, schema: testSchema} }

func openTest(t testing.TB, dir string, e engine) *Store {
	t.Helper()
	s, err := open(Options{Dir: dir}, e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// put adds an item and keeps the sums in step: the two belong together in
// every snapshot.
func put(tx *Tx, id int64, body []byte) error {
	if _, err := tx.exec(`INSERT INTO items VALUES (?, ?)`, id, body); err != nil {
		return err
	}
	_, err := tx.exec(`UPDATE sums SET n = n + 1, total = total + ?`, id)
	return err
}

// ids returns all items and an error if they contradict the sums.
func ids(tx *Tx) ([]int64, error) {
	var out []int64
	var total int64
	for r, err := range tx.query(`SELECT id, body FROM items ORDER BY id`) {
		if err != nil {
			return nil, err
		}
		var id int64
		var body []byte
		if err := r.scan(&id, &body); err != nil {
			return nil, err
		}
		if string(body) != string(bodyOf(id)) {
			return nil, fmt.Errorf("item %d has another body", id)
		}
		out = append(out, id)
		total += id
	}
	var n, sum int64
	if err := tx.queryRow(`SELECT n, total FROM sums`).scan(&n, &sum); err != nil {
		return nil, err
	}
	if n != int64(len(out)) || sum != total {
		return nil, fmt.Errorf("%d items with total %d, but the sums say %d and %d", len(out), total, n, sum)
	}
	return out, nil
}

// bodyOf is different for each id and between 40 and 9,000 bytes long: some
// rows overflow onto further pages.
func bodyOf(id int64) []byte {
	n := 40 + int(id*7919%1000)
	if id%8 == 0 {
		n *= 9
	}
	return slices.Repeat([]byte(fmt.Sprintf("body of item %08d. ", id)), n/20+1)[:n]
}

func add(s *Store, id int64) error {
	return s.Update(context.Background(), func(tx *Tx) error { return put(tx, id, bodyOf(id)) })
}

func all(t testing.TB, s *Store) []int64 {
	t.Helper()
	var out []int64
	err := s.View(context.Background(), func(tx *Tx) (err error) {
		out, err = ids(tx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestOpenCreatesAndReopens(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home")
	if Exists(dir) {
		t.Fatal("a store exists before it was created")
	}
	s := openTest(t, dir, testEngine())
	for id := range int64(50) {
		if err := add(s, id); err != nil {
			t.Fatal(err)
		}
	}
	want := all(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal("second Close:", err)
	}
	if err := add(s, 99); !errors.Is(err, ErrClosed) {
		t.Fatalf("Update after Close: got %v, want ErrClosed", err)
	}
	if err := s.View(t.Context(), func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Fatalf("View after Close: got %v, want ErrClosed", err)
	}
	if !Exists(dir) {
		t.Fatal("the store is gone")
	}
	s = openTest(t, dir, testEngine())
	if got := all(t, s); !slices.Equal(got, want) {
		t.Fatalf("after reopening: got %d items, want %d", len(got), len(want))
	}
	if err := s.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The released schema passes through the real Open.
func TestOpenReleasedSchema(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Protection(); got != "key file" {
		t.Errorf("protection is %q, want %q", got, "key file")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// An interrupted create leaves a staging folder, which is no store.
func TestOpenAfterInterruptedCreate(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, stagingName), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stagingName, databaseName), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	openTest(t, dir, testEngine())
	if _, err := os.Stat(filepath.Join(dir, stagingName)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("staging folder: %v, want it gone", err)
	}
}

func TestI08_TwoProcesses(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, dir, testEngine())
	_, err := open(Options{Dir: dir}, testEngine())
	var inUse *InUseError
	if !errors.As(err, &inUse) || inUse.PID != os.Getpid() {
		t.Fatalf("second open: got %v, want an InUseError with process %d", err, os.Getpid())
	}
	if !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("the message %q does not name the process", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openTest(t, dir, testEngine())
}

// Whatever the umask, nobody else may read a store.
func TestPermissions(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "home")
	s := openTest(t, dir, testEngine())
	if err := add(s, 1); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else {
			files++
		}
		if got := fi.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", path, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files != 7 { // lock, two keys, database, log, index, reserve
		t.Errorf("%d files, want 7", files)
	}
}

func TestPassphrase(t *testing.T) {
	dir := t.TempDir()
	openWith := func(pass string) (*Store, error) {
		return open(Options{Dir: dir, Passphrase: []byte(pass)}, testEngine())
	}
	s, err := openWith("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Protection(); got != "passphrase" {
		t.Errorf("protection is %q, want passphrase", got)
	}
	if err := add(s, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.ChangePassphrase([]byte("wrong"), []byte("x")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("change with a wrong passphrase: got %v, want ErrPassphrase", err)
	}
	s.Close()
	if _, err := openWith(""); !errors.Is(err, ErrPassphraseNeeded) {
		t.Errorf("no passphrase: got %v, want ErrPassphraseNeeded", err)
	}
	if _, err := openWith("wrong"); !errors.Is(err, ErrPassphrase) {
		t.Errorf("wrong passphrase: got %v, want ErrPassphrase", err)
	}
	steps := []struct{ old, new, protection string }{
		{"correct horse", "battery staple", "passphrase"},
		{"battery staple", "", "key file"},
		{"", "again", "passphrase"},
	}
	for _, step := range steps {
		if s, err = openWith(step.old); err != nil {
			t.Fatal(err)
		}
		if err := s.ChangePassphrase([]byte(step.old), []byte(step.new)); err != nil {
			t.Fatal(err)
		}
		if got := s.Protection(); got != step.protection {
			t.Errorf("protection is %q, want %q", got, step.protection)
		}
		if got := all(t, s); !slices.Equal(got, []int64{1}) {
			t.Errorf("items %v after the change", got)
		}
		s.Close()
		if step.new != "" {
			if _, err := openWith(step.old + "!"); !errors.Is(err, ErrPassphrase) {
				t.Errorf("an old passphrase: got %v, want ErrPassphrase", err)
			}
		}
	}
}

func TestUpdateErrorUndoesOnlyItsOwn(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for id := range int64(300) {
		wg.Go(func() {
			err := s.Update(t.Context(), func(tx *Tx) error {
				if err := put(tx, id, bodyOf(id)); err != nil {
					return err
				}
				switch id % 4 {
				case 1:
					return boom
				case 2:
					panic(id)
				case 3:
					runtime.Goexit()
				}
				return nil
			})
			var p *PanicError
			switch ok := id % 4; {
			case ok == 0 && err != nil, ok == 1 && !errors.Is(err, boom),
				ok == 2 && (!errors.As(err, &p) || p.Value != id), ok == 3 && err == nil:
				t.Errorf("update %d: got %v", id, err)
			}
		})
	}
	wg.Wait()
	got := all(t, s)
	if len(got) != 75 || slices.ContainsFunc(got, func(id int64) bool { return id%4 != 0 }) {
		t.Fatalf("items %v, want the multiples of 4 below 300", got)
	}
}

// A constraint violated in one update leaves the others of its group whole.
func TestUpdateConstraint(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	var wg sync.WaitGroup
	var mu sync.Mutex
	stored := 0
	for i := range int64(200) {
		wg.Go(func() {
			if add(s, i%50) == nil {
				mu.Lock()
				stored++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if got := len(all(t, s)); stored != 50 || got != 50 {
		t.Fatalf("%d updates succeeded and %d items stored, want 50 of each", stored, got)
	}
}

func TestOnCommit(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	var order []int64 // written by the writer's goroutine alone
	var wg sync.WaitGroup
	for id := range int64(200) {
		wg.Go(func() {
			_ = s.Update(t.Context(), func(tx *Tx) error {
				var n int64
				if err := tx.queryRow(`SELECT n FROM sums`).scan(&n); err != nil {
					return err
				}
				tx.OnCommit(func() { order = append(order, n) })
				if id%5 == 0 {
					return errors.New("no")
				}
				return put(tx, id, bodyOf(id))
			})
		})
	}
	wg.Wait()
	if len(order) != 160 || !slices.IsSorted(order) {
		t.Fatalf("hooks ran %d times, sorted %v; want 160 in order", len(order), slices.IsSorted(order))
	}
}

func TestUpdateContext(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	ctx, cancel := context.WithCancel(t.Context())
	inside, release := make(chan struct{}), make(chan struct{})
	first := make(chan error)
	go func() {
		first <- s.Update(ctx, func(tx *Tx) error {
			close(inside)
			<-release
			return put(tx, 1, bodyOf(1))
		})
	}()
	<-inside
	waiting := make(chan error)
	go func() { waiting <- s.Update(ctx, func(tx *Tx) error { return put(tx, 2, bodyOf(2)) }) }()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting update: got %v, want Canceled", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("running update: got %v, want it completed", err)
	}
	if got := all(t, s); !slices.Equal(got, []int64{1}) {
		t.Errorf("items %v, want [1]", got)
	}
}

func TestViewContext(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := s.View(ctx, func(tx *Tx) error {
		var n int64
		return tx.queryRow(`WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c`).scan(&n)
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("endless query: got %v, want DeadlineExceeded", err)
	}
	all(t, s) // the connection is usable again
}

func TestViewIsReadOnlySnapshot(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	if err := add(s, 1); err != nil {
		t.Fatal(err)
	}
	err := s.View(t.Context(), func(tx *Tx) error {
		before, err := ids(tx)
		if err != nil {
			return err
		}
		if err := add(s, 2); err != nil {
			return err
		}
		after, err := ids(tx)
		if err != nil {
			return err
		}
		if !slices.Equal(before, after) {
			t.Errorf("snapshot changed from %v to %v", before, after)
		}
		_, err = tx.exec(`DELETE FROM items`)
		if err == nil {
			t.Error("a view deleted")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := all(t, s); len(got) != 2 {
		t.Errorf("items %v, want two", got)
	}
}

func TestSixteenWriters(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	const each = 50
	var wg sync.WaitGroup
	for w := range int64(16) {
		wg.Go(func() {
			for i := range int64(each) {
				if err := add(s, w*each+i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(all(t, s)); got != 16*each {
		t.Fatalf("%d items, want %d", got, 16*each)
	}
}

// A query may run inside the loop over another run of the same query.
func TestQueryNested(t *testing.T) {
	s := openTest(t, t.TempDir(), testEngine())
	for id := range int64(4) {
		if err := add(s, id); err != nil {
			t.Fatal(err)
		}
	}
	err := s.View(t.Context(), func(tx *Tx) error {
		pairs := 0
		for _, err := range tx.query(`SELECT id FROM items`) {
			if err != nil {
				return err
			}
			for _, err := range tx.query(`SELECT id FROM items`) {
				if err != nil {
					return err
				}
				pairs++
			}
		}
		if pairs != 16 {
			t.Errorf("%d pairs, want 16", pairs)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A statement is prepared once, whatever is bound to it.
func TestStatementsStayPrepared(t *testing.T) {
	e := testEngine()
	e.schema = migrations
	s := openTest(t, t.TempDir(), e)
	err := s.View(t.Context(), func(tx *Tx) error {
		for n := range uint64(10) {
			if _, err := tx.SeqBefore(1, []byte("author"), n); err != nil {
				return err
			}
		}
		for sql, st := range tx.conn.stmts {
			if n := st.Status(sqlite3.STMTSTATUS_REPREPARE, false); n != 0 {
				t.Errorf("prepared again %d times: %s", n, sql)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBindAndScan(t *testing.T) {
	type name string
	type id [4]byte
	type state uint8
	s := openTest(t, t.TempDir(), testEngine())
	err := s.View(t.Context(), func(tx *Tx) error {
		var (
			b  bool
			i  int
			u  uint32
			st state
			n  name
			a  id
			bs []byte
			x  = []byte("old")
		)
		if err := tx.queryRow(`SELECT ?, ?, ?, ?, ?, ?, ?, ?`, true, -5, uint32(7), state(3), name("n"), id{1, 2, 3, 4}, []byte{}, nil).
			scan(&b, &i, &u, &st, &n, &a, &bs, &x); err != nil {
			return err
		}
		if !b || i != -5 || u != 7 || st != 3 || n != "n" || a != (id{1, 2, 3, 4}) || len(bs) != 0 || x != nil {
			t.Errorf("got %v %v %v %v %v %v %v %v", b, i, u, st, n, a, bs, x)
		}
		for _, test := range []struct {
			sql  string
			dest any
		}{
			{`SELECT -1`, new(uint32)},
			{`SELECT 256`, new(state)},
			{`SELECT x'0102'`, new(id)},
		} {
			if err := tx.queryRow(test.sql).scan(test.dest); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s into %T: got %v, want ErrDamaged", test.sql, test.dest, err)
			}
		}
		if err := tx.queryRow(`SELECT 1 WHERE 0`).scan(&i); !errors.Is(err, ErrNotFound) {
			t.Errorf("no row: got %v, want ErrNotFound", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// I11: a schema goes up or stays, and never down.
func TestI11_Migration(t *testing.T) {
	dir := t.TempDir()
	one, two, bad := testEngine(), testEngine(), testEngine()
	two.schema = fstest.MapFS{
		"schema/0001.sql": testSchema["schema/0001.sql"],
		"schema/0002.sql": {Data: []byte(`ALTER TABLE items ADD COLUMN note TEXT; CREATE INDEX items_note ON items(note);`)},
	}
	bad.schema = fstest.MapFS{
		"schema/0001.sql": testSchema["schema/0001.sql"],
		"schema/0002.sql": {Data: []byte(`ALTER TABLE items ADD COLUMN note TEXT; SELECT nonsense;`)},
	}
	s := openTest(t, dir, one)
	if err := add(s, 1); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := open(Options{Dir: dir}, bad); err == nil {
		t.Fatal("a failing migration opened")
	}
	s = openTest(t, dir, one) // unharmed
	all(t, s)
	s.Close()
	s = openTest(t, dir, two)
	if got := all(t, s); !slices.Equal(got, []int64{1}) {
		t.Fatalf("items %v after the migration", got)
	}
	s.Close()
	if _, err := open(Options{Dir: dir}, one); !errors.Is(err, ErrNewerSchema) {
		t.Fatalf("older program: got %v, want ErrNewerSchema", err)
	}
}

// The store works inside a bubble, where time passes only while all rest.
func TestInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openTest(t, t.TempDir(), testEngine())
		for id := range int64(20) {
			if err := add(s, id); err != nil {
				t.Fatal(err)
			}
		}
		for id := range int64(2) {
			if err := add(s, 100+id); err != nil {
				t.Fatal(err)
			}
			if logSize(t, s) == 0 {
				t.Error("the log is empty before the store was idle")
			}
			time.Sleep(2 * idleDelay)
			synctest.Wait()
			if n := logSize(t, s); n != 0 {
				t.Errorf("the log has %d bytes after the store was idle, want 0", n)
			}
		}
		if got := len(all(t, s)); got != 22 {
			t.Errorf("%d items, want 22", got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func logSize(t testing.TB, s *Store) int64 {
	t.Helper()
	fi, err := os.Stat(filepath.Join(s.dir, databaseName+"-wal"))
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

// Close ends what is under way in good order, and nothing begins after it.
func TestCloseWaits(t *testing.T) {
	for range 10 {
		s := openTest(t, t.TempDir(), testEngine())
		var wg sync.WaitGroup
		started := make(chan struct{}, 64)
		for i := range int64(8) {
			wg.Go(func() {
				for n := int64(0); ; n++ {
					var err error
					if i%2 == 0 {
						err = add(s, i*1000+n)
					} else {
						err = s.View(t.Context(), func(tx *Tx) error { _, err := ids(tx); return err })
					}
					if errors.Is(err, ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					select {
					case started <- struct{}{}:
					default:
					}
				}
			})
		}
		for range cap(started) {
			<-started
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		// The last connection to close removes the log.
		if _, err := os.Stat(filepath.Join(s.dir, databaseName+"-wal")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after Close the log is there (%v): a connection is still open", err)
		}
		wg.Wait()
	}
}
