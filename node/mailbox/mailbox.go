// Package mailbox is the service of a node that keeps envelopes for people who
// are away (docs/spec/mailbox.md). It has a file of its own, a plain SQLite
// database: what is in there, the wire has shown. A box is known by its owner's
// key for this one node, an envelope by the box's tag that it came under; of
// whoever deposits nothing is kept.
//
//	serve.go     a stream: read requests, answer them in their order
//	sources.go   what one peer, and one prefix of addresses, may ask for
//	commit.go    the one writer: what streams want changed, many in one fsync
//	boxes.go     what a request does to the database, and who may have how much
//	tidy.go      what ends by itself: mail that expired, boxes left behind
//	status.go    what an operator sees and sets
//
// Nothing is told about boxes and tags to who does not hold the box's key or a
// registered tag: whatever else is the case, an unknown tag is an unknown tag.
package mailbox

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// errFailed means that writing failed: nobody knows what is on the disk, so
// nothing more is acknowledged until the file is opened anew.
var errFailed = errors.New("the disk failed while saving mail: check the disk and restart kith")

// errClosed means that the service ends.
var errClosed = errors.New("the mailboxes are closed")

// readers is how many pages are read at once.
const readers = 3

// Config says how a service is opened. Path and Key are required.
type Config struct {
	// Path is the database file, made if it is not there. Only one process may
	// have it open: the caller holds the folder it is in.
	Path string
	// Key is the host's own transport key: it signs receipts.
	Key ed25519.PrivateKey
	// Limits are the operator's. One that differs from what was given the last
	// time the file was opened replaces what Configure has set since.
	Limits Limits
	// Now is the wall's time; nil: time.Now.
	Now func() time.Time
	// Log receives what no caller learns otherwise; nil discards.
	Log *slog.Logger
}

// Service keeps mail. Its methods may be called from any goroutine.
type Service struct {
	path string
	key  ed25519.PrivateKey
	node [32]byte // the key's public half
	wall func() time.Time
	log  *slog.Logger
	salt []byte // tells groups of addresses apart
	age  age

	queue   queue
	readers chan *conn
	ended   chan struct{} // the writer has returned

	closed   chan struct{} // by Close
	failed   chan struct{} // closed when writing failed
	failOnce sync.Once

	sources  sources
	counters counters
	now      atomic.Pointer[settings]

	mu      sync.Mutex
	use     usage                      // as of the last commit
	full    bool                       // the disk is
	waiting map[int64]map[*stream]bool // streams by the box they have opened
	streams map[*stream]struct{}
	closing bool
	live    sync.WaitGroup // streams
	once    sync.Once

	writer *conn     // owned by the writer goroutine
	logged int       // pages in the log
	spent  bool      // the reserve is not there
	tried  time.Time // when it was last tried to have it
}

// settings are what an operator has set, complete.
type settings struct {
	Limits
	Draining bool
}

// Names in the table of single values.
const (
	metaSalt     = "salt"
	metaGiven    = "limits given" // by Config, the last time
	metaLimits   = "limits"       // by Configure
	metaDraining = "draining"
)

func (c *conn) meta(name string) (b []byte, err error) {
	_, err = c.get([]any{&b}, `SELECT value FROM meta WHERE name = ?`, name)
	return b, err
}

func (c *conn) setMeta(name string, value []byte) error {
	return c.exec(`INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)`, name, value)
}

// Open opens the file, or makes it, and begins to write. Run does the rest.
//
// Errors to branch on: ErrNewerSchema, ErrDamaged.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	return open(ctx, cfg, engine{schema: migrations})
}

// engine is what tests replace.
type engine struct {
	vfs    string // SQLite's name for a file layer; "": the system's
	schema fs.FS  // schema/NNNN.sql
}

func open(_ context.Context, cfg Config, e engine) (_ *Service, err error) {
	s := &Service{
		path: cfg.Path, key: cfg.Key, wall: cfg.Now, log: cfg.Log,
		queue:   newQueue(),
		readers: make(chan *conn, readers),
		ended:   make(chan struct{}),
		closed:  make(chan struct{}),
		failed:  make(chan struct{}),
		waiting: make(map[int64]map[*stream]bool),
		streams: make(map[*stream]struct{}),
	}
	if s.wall == nil {
		s.wall = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.node = [32]byte(cfg.Key.Public().(ed25519.PublicKey))
	defer func() {
		if err != nil {
			_ = s.release() // the first error is the one to tell
		}
	}()
	// The reserve is made when the file has been: with a reserve and nothing in
	// it, a file was emptied.
	_, reserved := os.Stat(s.reserveName())
	used := reserved == nil
	if e.vfs == "" {
		created, err := createFile(cfg.Path)
		if err == nil && created && used {
			err, used = os.Remove(s.reserveName()), false
		}
		if err != nil {
			return nil, fmt.Errorf("open the mailboxes: %w", err)
		}
	}
	if err := s.connect(e, used); err != nil {
		return nil, fmt.Errorf("open the mailboxes: %w", explain(err))
	}
	if err := s.load(cfg.Limits); err != nil {
		return nil, fmt.Errorf("open the mailboxes: %w", explain(err))
	}
	s.sources = newSources(func() int64 { return s.settings().SourceRate })
	go s.write()
	return s, nil
}

// explain gives damage the meaning callers branch on.
func explain(err error) error {
	if isDamage(err) {
		return fmt.Errorf("%w (%w)", ErrDamaged, err)
	}
	return err
}

// connect opens the connections and brings the schema up to date.
func (s *Service) connect(e engine, used bool) (err error) {
	if s.writer, err = connect(s.path, e.vfs); err != nil {
		return err
	}
	s.writer.db.WALHook(s.logGrew)
	// What a crash left in the log is written anew: a sync that failed before it
	// may have left less of it on the disk than can be read.
	if err := s.emptyLog(); err != nil {
		return err
	}
	if err := s.writer.prepare(e.schema, used); err != nil {
		return err
	}
	s.restoreReserve()
	for range readers {
		c, err := connect(s.path, e.vfs)
		if err != nil {
			return err
		}
		s.readers <- c
		if err := c.exec(`PRAGMA query_only = ON`); err != nil {
			return err
		}
	}
	return nil
}

// load reads what is kept in memory.
func (s *Service) load(given Limits) (err error) {
	c := s.writer
	if s.age, err = loadAge(c, s.wall()); err != nil {
		return err
	}
	if s.salt, err = c.meta(metaSalt); err != nil {
		return err
	}
	var last, set Limits
	for name, l := range map[string]*Limits{metaGiven: &last, metaLimits: &set} {
		b, err := c.meta(name)
		if err != nil {
			return err
		}
		if len(b) > 0 && json.Unmarshal(b, l) != nil {
			return ErrDamaged
		}
	}
	draining, err := c.meta(metaDraining)
	if err != nil {
		return err
	}
	// The newest word counts: of whoever wrote the configuration, or called
	// Configure.
	was, is := last.fields(), given.fields()
	for i, f := range set.fields() {
		if *was[i].value != *is[i].value || *f.value == 0 {
			*f.value = *is[i].value
		}
	}
	s.now.Store(&settings{Limits: set.complete(), Draining: len(draining) > 0})
	if len(s.salt) == 0 {
		s.salt = make([]byte, 16)
		rand.Read(s.salt)
	}
	for name, v := range map[string]any{metaGiven: given, metaLimits: set} {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := c.setMeta(name, b); err != nil {
			return err
		}
	}
	if err := errors.Join(c.setMeta(metaSalt, s.salt), s.age.save(c, s.wall())); err != nil {
		return err
	}
	return s.use.load(c)
}

// settings are what holds now.
func (s *Service) settings() *settings { return s.now.Load() }

// Run tidies until ctx ends, then ends all streams and returns when they have.
// If writing fails it returns an error at once; what is stored can then still
// be collected until the caller gives up.
func (s *Service) Run(ctx context.Context) error {
	err := s.tidy(ctx)
	s.mu.Lock()
	s.closing = true
	for st := range s.streams {
		st.end()
	}
	s.mu.Unlock()
	s.live.Wait()
	return err
}

// Close ends all streams, saves the age, and closes the file. When it returns no
// goroutine of the service is left. Calls after the first return nil.
func (s *Service) Close() error {
	var err error
	s.once.Do(func() {
		s.mu.Lock()
		s.closing = true
		for st := range s.streams {
			st.end()
		}
		s.mu.Unlock()
		s.live.Wait()
		saved := s.change(context.Background(), func(tx *tx) error { return s.age.save(tx.conn, s.wall()) })
		s.queue.close()
		<-s.ended
		close(s.closed)
		for range readers { // as each read ends
			err = errors.Join(err, (<-s.readers).close())
		}
		err = errors.Join(saved, err, s.release())
	})
	return err
}

// release closes the connections. Nobody uses them.
func (s *Service) release() error {
	var errs []error
	for len(s.readers) > 0 {
		errs = append(errs, (<-s.readers).close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close()) // the last one also removes the log
	}
	return errors.Join(errs...)
}

// read runs fn with a connection that only reads.
func (s *Service) read(ctx context.Context, fn func(*conn) error) error {
	select {
	case c := <-s.readers:
		defer func() { s.readers <- c }()
		return fn(c)
	case <-s.closed:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}
