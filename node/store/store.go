// Package store keeps a messenger's durable state: one encrypted SQLite
// database, one writer, a few readers.
//
// On disk a store is the folder "store" inside the data directory:
//
//	key.0 key.1   the data key in its slots, two copies (keyfile.go)
//	kith.db       the database, every 4096-byte block enciphered (vfs.go)
//	kith.db-wal   its write-ahead log, likewise
//	kith.db-shm   SQLite's index of the log: page numbers, no content
//	reserve       ballast, so that deleting still works on a full disk
//	probe         there for a moment, when somebody asks whether there is room
//
// beside a file "lock" that one process at a time holds (lock.go). A new store
// is built in "store.new" and renamed into place, so that a folder called
// "store" is always complete: whatever is missing from it is damage, never a
// reason to begin a fresh identity.
//
// Everything that changes goes through [Store.Update], everything else through
// [Store.View]. When Update returns nil the change has been synced to disk.
package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ncruces/go-sqlite3"
)

var (
	// ErrPassphraseNeeded: the store is protected and Options.Passphrase is empty.
	ErrPassphraseNeeded = errors.New("this store is protected by a passphrase: enter it and try again")
	// ErrPassphrase: no slot of the key file opens with the passphrase given.
	ErrPassphrase = errors.New("the passphrase does not open this store: check it and try again")
	// ErrDamaged: a file is missing, cut short or altered. It is wrapped with
	// what was found. Nothing is ever recreated in its place.
	ErrDamaged = errors.New("stop kith and restore the data directory from a backup")
	// ErrNewerSchema: a later version of kith has written this store.
	ErrNewerSchema = errors.New("this store was written by a newer kith: install that version again, or a later one")
	// ErrFull: the disk has no room for the change, which was undone. (If the
	// machine stops before there is room, the next Open may find it done after
	// all, whole.) The store can still be read, Reclaim still deletes, and
	// Update works again as soon as there is room.
	ErrFull = errors.New("the disk is full: nothing was saved; free some space and try again")
	// ErrReadOnly: writing or syncing failed, so nothing more is accepted:
	// after a failed fsync the system may have dropped what it could not
	// write. Reading still works. Only a new Open ends this state.
	ErrReadOnly = errors.New("the disk failed while saving, so kith only reads: check the disk and restart kith")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("the store is closed: restart kith")
	// ErrNotFound: a query for one row found none.
	ErrNotFound = errors.New("not found")
)

// InUseError says that another process holds the data directory.
type InUseError struct {
	PID int // the holder; 0 if it could not be read
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return "another kith uses this data directory: stop it with `kith down`, or choose another one with --home"
	}
	return fmt.Sprintf("another kith (process %d) uses this data directory: stop it with `kith down`, or choose another one with --home", e.PID)
}

// PanicError is what Update returns when the closure panicked. The change was
// rolled back and the store goes on.
type PanicError struct {
	Value any    // what was passed to panic; may hold private data, so it is not part of Error
	Stack []byte // where
}

func (e *PanicError) Error() string {
	return "a change was undone because the program failed inside it"
}

const (
	// maxGroup bounds how many updates share one fsync. Beyond 64 an fsync no
	// longer dominates, and one group would hold up its first member longer.
	maxGroup = 64

	// readers is how many views run at once; more wait their turn. Three kept
	// the 99th percentile of a page of history at 1 ms beside a busy writer.
	readers = 3

	// idleDelay is how long after the last commit the log is emptied. Old
	// versions of rows, and with them consumed keys, live in the log until then.
	idleDelay = 500 * time.Millisecond

	// maxLogAge bounds the same under steady load.
	maxLogAge = 10 * time.Second

	// truncateWait is how long emptying the log waits for running views. They
	// do not have to end for the writer's sake, so it tries again later.
	truncateWait = 50 * time.Millisecond

	// readerWait bounds how long a view waits for the log to be recovered or reset.
	readerWait = 5 * time.Second

	storeName    = "store"
	stagingName  = "store.new"
	databaseName = "kith.db"
	reserveName  = "reserve"
	probeName    = "probe"

	// logPages is the size at which SQLite moves the log into the database (it
	// then begins again at the log's start). A busy daemon changes hundreds of
	// pages in a commit and many of them again in the next. Moving four commits
	// together took a sixth less CPU than each alone; eight, no less than four.
	logPages = 1000

	// reserveSize is room for the database to take in a log of that size, so
	// that Open and deleting work on a full disk, and then for the log of a
	// transaction that deletes.
	reserveSize = 4 << 20
)

// Options say where a store is and how it is opened.
type Options struct {
	// Dir is the data directory. It is created with mode 0700; one that
	// exists keeps its mode, and the folder "store" in it has 0700 always.
	Dir string

	// Passphrase opens a protected store. For a store about to be created it
	// decides the protection: empty means a key file alone, readable by
	// whoever can read the user's files. Open does not keep it.
	Passphrase []byte

	// Log receives what no caller learns otherwise; nil discards.
	Log *slog.Logger
}

// Store is an open store. Its methods may be called from any goroutine.
type Store struct {
	dir  string // of the store itself
	log  *slog.Logger
	disk disk
	vfs  *cryptVFS
	lock *homeLock
	keys *keyFile
	kdf  kdfParams
	seal sealer

	readers chan *conn
	updates chan *update
	closing chan struct{}
	once    sync.Once
	ended   chan struct{} // the writer has returned

	failed   chan struct{}
	failOnce sync.Once

	// Owned by the writer goroutine.
	writer  *conn
	emptied time.Time // when the log was last emptied
	spent   bool      // the reserve is not there
}

// engine is what tests replace.
type engine struct {
	disk   disk      // where database blocks go
	kdf    kdfParams // cost of new passphrase slots
	schema fs.FS     // schema/NNNN.sql
	plain  bool      // SQLite's own files in the clear: the floor benchmarks compare with
}

// Exists says whether dir holds a store, damaged or not: whether Open would
// open or create.
func Exists(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, storeName))
	return !errors.Is(err, fs.ErrNotExist)
}

// Open opens the store in o.Dir and brings its schema up to date. If there is
// none, it creates one. It holds an exclusive lock on o.Dir until Close.
//
// Errors to branch on: *InUseError, ErrPassphraseNeeded, ErrPassphrase,
// ErrDamaged, ErrNewerSchema, ErrFull.
func Open(o Options) (*Store, error) {
	return open(o, engine{disk: osDisk{}, kdf: defaultKDF(), schema: migrations})
}

func open(o Options, e engine) (_ *Store, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the data directory: %w", err)
	}
	lock, err := lockHome(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir:     filepath.Join(o.Dir, storeName),
		log:     o.Log,
		disk:    e.disk,
		lock:    lock,
		kdf:     e.kdf,
		readers: make(chan *conn, readers),
		updates: make(chan *update),
		closing: make(chan struct{}),
		ended:   make(chan struct{}),
		failed:  make(chan struct{}),
	}
	defer func() {
		if err != nil {
			_ = s.release() // the first error is the one to tell
		}
	}()
	if !Exists(o.Dir) {
		if err := create(o, e); err != nil {
			return nil, fmt.Errorf("create the store: %w", classify(err))
		}
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	if s.keys, err = openKeyFile(s.dir, o.Passphrase); err != nil {
		return nil, err
	}
	s.seal = newSealer(s.keys.dataKey)
	if err := present(e.disk, filepath.Join(s.dir, databaseName)); err != nil {
		return nil, err
	}
	if err := s.connect(e); err != nil {
		return nil, err
	}
	go s.write()
	return s, nil
}

// create builds a complete store in a staging folder and renames it into
// place. A folder an interrupted create left behind holds nothing that anyone
// was told about, so it is removed.
func create(o Options, e engine) (err error) {
	staging := filepath.Join(o.Dir, stagingName)
	if err := e.disk.removeAll(staging); err != nil {
		return err
	}
	if err := os.Mkdir(staging, 0o700); err != nil {
		return err
	}
	keys, err := createKeyFile(staging, o.Passphrase, e.kdf)
	if err != nil {
		return err
	}
	if err := createDatabase(e, keys, staging); err != nil {
		return err
	}
	if err := e.disk.syncDir(staging); err != nil {
		return err
	}
	if err := e.disk.rename(staging, filepath.Join(o.Dir, storeName)); err != nil {
		return err
	}
	return e.disk.syncDir(o.Dir)
}

// createDatabase makes a database with our schema and no log.
func createDatabase(e engine, keys *keyFile, dir string) (err error) {
	v := newCryptVFS(e.disk, keys.dataKey)
	defer v.unregister()
	c, err := openConn(connURI(e, v, dir), sqlite3.OPEN_READWRITE|sqlite3.OPEN_CREATE)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, c.close(), v.failure())
	}()
	if err := c.db.Exec(`PRAGMA page_size=4096`); err != nil {
		return err
	}
	// Eight bytes of checksum inside each enciphered block: a wide-block cipher
	// turns any change of a block into noise, which passes once in 2^64.
	if err := c.db.EnableChecksums(""); err != nil {
		return err
	}
	if err := c.configure(writerPragmas); err != nil {
		return err
	}
	if err := migrate(c, e.schema, true); err != nil {
		return err
	}
	_, _, err = c.db.WALCheckpoint("", sqlite3.CHECKPOINT_TRUNCATE)
	return err
}

// present says whether there is a database at all. SQLite takes a missing or
// empty file for a new database, and we would then begin a fresh identity.
func present(d disk, name string) error {
	f, err := d.open(name, false)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the database is missing from the store: %w", ErrDamaged)
	}
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	size, err := f.Size()
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	if size < blockSize {
		return fmt.Errorf("the database is empty: %w", ErrDamaged)
	}
	return nil
}

// connect opens the writer, migrates, and opens the readers.
func (s *Store) connect(e engine) error {
	s.vfs = newCryptVFS(e.disk, s.keys.dataKey)
	uri := connURI(e, s.vfs, s.dir)
	var err error
	if s.writer, err = openConn(uri, sqlite3.OPEN_READWRITE); err != nil {
		return fmt.Errorf("open the database: %w", classify(err))
	}
	if err := s.writer.configure(writerPragmas); err != nil {
		return fmt.Errorf("open the database: %w", classify(err))
	}
	if err := s.replayLog(); err != nil {
		return fmt.Errorf("open the database: %w", classify(err))
	}
	if err := migrate(s.writer, e.schema, false); err != nil {
		return fmt.Errorf("open the database: %w", classify(err))
	}
	for range readers {
		c, err := openConn(uri, sqlite3.OPEN_READWRITE)
		if err != nil {
			return fmt.Errorf("open the database: %w", classify(err))
		}
		s.readers <- c
		if err := c.configure(readerPragmas); err != nil {
			return fmt.Errorf("open the database: %w", classify(err))
		}
	}
	s.restoreReserve()
	return nil
}

// replayLog moves what a crash left in the log into the database. The log may
// end in the middle of a block, and appending to that block would put what it
// holds at risk a second time: without this, 15 of 500 runs with three simulated
// power cuts each lost a commit.
func (s *Store) replayLog() error {
	_, _, err := s.writer.db.WALCheckpoint("", sqlite3.CHECKPOINT_TRUNCATE)
	if errors.Is(err, sqlite3.FULL) {
		s.spendReserve()
		_, _, err = s.writer.db.WALCheckpoint("", sqlite3.CHECKPOINT_TRUNCATE)
	}
	return err
}

// release gives back whatever has been acquired. No view or update is running.
func (s *Store) release() error {
	var errs []error
	for len(s.readers) > 0 {
		errs = append(errs, (<-s.readers).close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close()) // the last connection also removes the log
	}
	if s.vfs != nil {
		errs = append(errs, s.vfs.failure())
		s.vfs.unregister()
	}
	errs = append(errs, s.lock.release())
	return errors.Join(errs...)
}

// Close waits for the updates under way and for running views, moves the log
// into the database and releases the data directory. When it returns no
// goroutine of the store is left. Calls after the first return nil.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closing)
		<-s.ended
		for range readers { // as each view ends
			err = errors.Join(err, (<-s.readers).close())
		}
		err = errors.Join(err, s.release())
	})
	return err
}

// Failed returns a channel that is closed when the store has become read-only
// (ErrReadOnly).
func (s *Store) Failed() <-chan struct{} { return s.failed }

// probeSize is more than a transaction that adds takes of the disk, nearly always.
const probeSize = 1 << 20

// Full says whether the disk has no room for a change that adds something: it tries
// to write as much beside the store.
func (s *Store) Full() bool {
	name := filepath.Join(s.dir, probeName)
	f, err := s.disk.open(name, true)
	if err == nil {
		ballast := make([]byte, probeSize)
		_, _ = rand.Read(ballast) // so that no file system compresses it away
		_, err = f.WriteAt(ballast, 0)
		err = errors.Join(err, f.Close(), s.disk.remove(name))
	}
	return noSpace(err)
}

// Protection names what opens the store: "passphrase" or "key file".
func (s *Store) Protection() string { return s.keys.protection() }

// View runs fn on a snapshot of the database as of its first query. It may run
// beside updates and other views; at most a few run at once. fn must not keep
// tx, use it from another goroutine, or call View or Update. If ctx ends, a
// running query is interrupted.
func (s *Store) View(ctx context.Context, fn func(*Tx) error) error {
	var c *conn
	select {
	case <-s.closing:
		return ErrClosed
	default:
	}
	select {
	case c = <-s.readers:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return ErrClosed
	}
	defer func() { s.readers <- c }()
	if err := c.exec(`BEGIN`); err != nil {
		return fmt.Errorf("read: %w", classify(err))
	}
	defer func() {
		c.db.SetInterrupt(context.Background())
		c.rollback()
	}()
	c.db.SetInterrupt(ctx)
	tx := &Tx{conn: c, seal: s.seal}
	defer tx.end()
	err := fn(tx)
	if errors.Is(err, sqlite3.INTERRUPT) && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Check reads the whole database and reports damage (ErrDamaged).
func (s *Store) Check(ctx context.Context) error {
	return s.View(ctx, func(tx *Tx) error {
		var verdict string
		if err := tx.queryRow(`PRAGMA integrity_check(1)`).scan(&verdict); err != nil {
			return err
		}
		if verdict != "ok" {
			return fmt.Errorf("the database contradicts itself: %w", ErrDamaged)
		}
		return nil
	})
}

// connURI names the database for one VFS.
func connURI(e engine, v *cryptVFS, dir string) string {
	name := v.name
	if e.plain {
		name = "os"
	}
	// Without "//": SQLite would take the drive of a Windows path for a host.
	path := url.URL{Path: filepath.ToSlash(filepath.Join(dir, databaseName))}
	u := url.URL{Scheme: "file", Opaque: path.EscapedPath(), RawQuery: "vfs=" + name}
	return u.String()
}

// classify gives SQLite's error codes the meanings callers branch on.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrDamaged), errors.Is(err, ErrFull), errors.Is(err, ErrNewerSchema):
		return err
	case errors.Is(err, sqlite3.FULL):
		return fmt.Errorf("%w (%w)", ErrFull, err)
	case errors.Is(err, sqlite3.CORRUPT), errors.Is(err, sqlite3.NOTADB),
		errors.Is(err, sqlite3.IOERR_DATA), errors.Is(err, sqlite3.IOERR_CORRUPTFS),
		errors.Is(err, sqlite3.IOERR_SHORT_READ):
		return fmt.Errorf("the database is damaged (%w): %w", err, ErrDamaged)
	}
	return err
}
