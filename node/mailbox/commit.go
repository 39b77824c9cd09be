package mailbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// What streams want changed is done by one goroutine, many wishes in one
// transaction with one fsync:
//
//  1. A stream hands in a batch and waits.
//  2. The writer takes a few operations of every batch that waits, in turn: who
//     hands in many does not hold up who hands in one.
//  3. It runs them, commits, syncs.
//  4. A batch of which all is done is answered.
//
// Nothing waits on purpose: while one group is being synced the next gathers.

// op is one change. do may run twice, after its first run was undone.
type op struct {
	do    func(*tx) error
	frees bool // may use the room held in reserve
	err   error
}

// tx is what an op works on.
type tx struct {
	*conn
	age  int64
	set  *settings
	use  *usage
	free int64              // bytes of the quota that are not in use
	news map[int64]struct{} // boxes with something new
}

// errFull means that the disk is: nothing was changed.
var errFull = errors.New("the disk is full")

// batch is what one stream hands in together.
type batch struct {
	ops  []*op
	next int // the first one not yet taken
	done chan struct{}
}

// queue holds the batches that wait.
type queue struct {
	mu      sync.Mutex
	batches []*batch
	closed  bool
	changed chan struct{}
}

func newQueue() queue { return queue{changed: make(chan struct{}, 1)} }

func (q *queue) poke() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// add hands in a batch and says whether it will be met.
func (q *queue) add(b *batch) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.batches = append(q.batches, b)
	q.poke()
	return true
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.poke()
}

// take waits for work and takes a group of it, and the batches of which this is
// the end. The group is empty when the queue is closed and nothing is left.
func (q *queue) take() (group []*op, finished []*batch) {
	for {
		q.mu.Lock()
		if len(q.batches) > 0 || q.closed {
			break
		}
		q.mu.Unlock()
		<-q.changed
	}
	defer q.mu.Unlock()
	share := max(1, maxGroup/max(1, len(q.batches)))
	for len(group) < maxGroup && len(q.batches) > 0 {
		b := q.batches[0]
		q.batches = q.batches[1:]
		n := min(len(b.ops)-b.next, share, maxGroup-len(group))
		group = append(group, b.ops[b.next:b.next+n]...)
		if b.next += n; b.next == len(b.ops) {
			finished = append(finished, b)
		} else {
			q.batches = append(q.batches, b)
		}
	}
	return group, finished
}

// submit has changes made, and returns when all are on the disk. What became
// of each is in its err: nil; errFull, and nothing more was tried; errFailed.
// ctx can keep them from being begun.
func (s *Service) submit(ctx context.Context, ops ...*op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b := &batch{ops: ops, done: make(chan struct{})}
	if !s.queue.add(b) {
		return errClosed
	}
	<-b.done
	return nil
}

// change has one change made that needs room.
func (s *Service) change(ctx context.Context, do func(*tx) error) error {
	o := &op{do: do}
	return errors.Join(s.submit(ctx, o), o.err)
}

// reclaim has one change made that gives room back.
func (s *Service) reclaim(ctx context.Context, do func(*tx) error) error {
	o := &op{do: do, frees: true}
	return errors.Join(s.submit(ctx, o), o.err)
}

// write is the writer goroutine: it alone uses s.writer.
func (s *Service) write() {
	defer close(s.ended)
	for {
		group, finished := s.queue.take()
		if len(group) == 0 {
			return
		}
		s.commit(group)
		for _, b := range finished {
			close(b.done)
		}
	}
}

// commit runs a group and leaves in every op what became of it.
func (s *Service) commit(group []*op) {
	if s.spent && (needRoom(group) || time.Since(s.tried) >= reserveEvery) && !s.restoreReserve() {
		group = refuse(group)
	}
	err := s.attempt(group)
	if s.isFull(err) {
		_ = s.emptyLog() // it may make room, and is repeated if not
		group = refuse(group)
		s.spendReserve()
		err = s.attempt(group)
	}
	if err != nil && !errors.Is(err, errFailed) && len(group) > 1 {
		// Something cannot be read. Whoever does not ask for that is served.
		for _, o := range group {
			o.err = s.attempt([]*op{o})
		}
	} else {
		for _, o := range group {
			o.err = err
		}
	}
	if err := s.trimLog(); err != nil {
		s.fail(err)
	}
	s.mu.Lock()
	s.full = s.spent
	s.mu.Unlock()
}

// needRoom says whether there are any but those who free room.
func needRoom(group []*op) bool {
	return slices.ContainsFunc(group, func(o *op) bool { return !o.frees })
}

// refuse tells all but those who free room that there is none, and returns these.
func refuse(group []*op) (rest []*op) {
	for _, o := range group {
		if o.frees {
			rest = append(rest, o)
		} else {
			o.err = errFull
		}
	}
	return rest
}

// attempt runs ops in one transaction. If it fails none was done.
func (s *Service) attempt(group []*op) error {
	select {
	case <-s.failed:
		return errFailed
	default:
	}
	if len(group) == 0 {
		return nil
	}
	use, news, err := s.transact(group)
	if err != nil {
		s.writer.rollback()
		if isFailure(err) && !s.isFull(err) {
			s.fail(err)
			return fmt.Errorf("%w (%w)", errFailed, err)
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.use = use
	for box := range news {
		for st := range s.waiting[box] {
			st.poke()
		}
	}
	return nil
}

func (s *Service) transact(group []*op) (use usage, news map[int64]struct{}, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the program failed inside a change: %v", v)
		}
	}()
	c := s.writer
	if err := c.exec(`BEGIN IMMEDIATE`); err != nil {
		return use, nil, err
	}
	use = s.use // only the writer changes it
	if use.disk, err = c.inUse(); err != nil {
		return use, nil, err
	}
	t := &tx{conn: c, age: s.age.now(), set: s.settings(), use: &use, news: make(map[int64]struct{})}
	t.free = max(0, t.set.Quota-use.disk)
	for _, o := range group {
		if err := o.do(t); err != nil {
			return use, nil, err
		}
	}
	return use, t.news, c.exec(`COMMIT`)
}

// isFull says that there was no room. SQLite's file layer may call that any
// failed write, so one that failed is tried again, beside the file.
func (s *Service) isFull(err error) bool {
	if errors.Is(err, sqlite3.FULL) {
		return true
	}
	if !errors.Is(err, sqlite3.IOERR_WRITE) || errors.Is(err, errFailed) {
		return false
	}
	probe := s.path + ".probe"
	err = os.WriteFile(probe, make([]byte, 1<<20), 0o600)
	_ = os.Remove(probe)
	return errors.Is(err, syscall.ENOSPC)
}

// fail ends all acknowledging.
func (s *Service) fail(cause error) {
	s.failOnce.Do(func() {
		s.log.Error("saving mail failed; nothing more is acknowledged", "cause", cause)
		close(s.failed)
	})
}

// logGrew is told by SQLite how many pages the log has after a commit.
func (s *Service) logGrew(_ *sqlite3.Conn, _ string, pages int) error {
	s.logged = pages
	return nil
}

// trimLog moves the log into the database when it has grown.
func (s *Service) trimLog() error {
	if s.logged < logPages {
		return nil
	}
	mode := sqlite3.CHECKPOINT_PASSIVE
	if s.logged >= logLimit {
		mode = sqlite3.CHECKPOINT_RESTART
	}
	_, _, err := s.writer.db.WALCheckpoint("", mode)
	if errors.Is(err, sqlite3.BUSY) || s.isFull(err) {
		return nil // next time
	}
	return err
}

// emptyLog moves the log into the database and gives its room back.
func (s *Service) emptyLog() error {
	s.logged = 0
	_, _, err := s.writer.db.WALCheckpoint("", sqlite3.CHECKPOINT_TRUNCATE)
	if errors.Is(err, sqlite3.BUSY) {
		return nil
	}
	return err
}

const (
	pageSize = 4096
	// reserveEvery is how often those who free room try to have the reserve again:
	// what there is room for of it is written in vain each time.
	reserveEvery = time.Second
	// reserveSize is room for moving a log of usual size, and then for the log
	// of those who delete.
	reserveSize = logPages * pageSize
)

func (s *Service) reserveName() string { return s.path + ".reserve" }

// restoreReserve sees to it that the reserve is there, and says whether it is.
func (s *Service) restoreReserve() bool {
	s.spent, s.tried = true, time.Now()
	f, err := os.OpenFile(s.reserveName(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false
	}
	if err := errors.Join(fillReserve(f), f.Close()); err != nil {
		_ = os.Remove(s.reserveName()) // a part of it would only take room
		return false
	}
	s.spent = false
	return true
}

// fillReserve writes what is missing of the reserve.
func fillReserve(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	ballast := make([]byte, 1<<20)
	for at := info.Size(); at < reserveSize; at += int64(len(ballast)) {
		rand.Read(ballast) // so that no file system compresses it away
		if _, err := f.WriteAt(ballast, at); err != nil {
			return err
		}
	}
	return nil
}

// spendReserve gives the room of the reserve back to the disk.
func (s *Service) spendReserve() {
	if !s.spent {
		s.log.Warn("the disk is full: no more mail is taken until there is room")
	}
	s.spent = true
	_ = os.Remove(s.reserveName()) // it may be gone already
}
