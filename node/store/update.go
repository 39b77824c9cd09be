package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// An update's journey:
//
//  1. Update hands the closure to the writer, which takes all that wait.
//  2. The writer begins one transaction and runs each closure in a savepoint
//     of its own: an error or a panic undoes that closure alone.
//  3. One commit, one fsync.
//  4. OnCommit hooks, in order.
//  5. Every Update of the group returns.
//
// Nothing waits on purpose: while one group is being synced the next gathers.

type update struct {
	fn      func(*Tx) error
	reclaim bool
	err     error
	tx      *Tx
	done    chan struct{}
}

// Update runs fn in a transaction and returns nil once it is committed and
// synced to disk. If fn returns an error or panics (*PanicError), its changes
// are undone and Update returns that error. fn runs on another goroutine, one
// at a time with all other updates; it must not keep tx or call View or Update.
// ctx can keep an update from starting; one that has started is completed.
//
// An error that is not fn's own means that nothing of fn was acknowledged:
// ErrFull (try again when there is room), ErrReadOnly (never again, see
// Failed; the change may or may not be there after the next Open), ErrClosed.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	return s.submit(ctx, &update{fn: fn, done: make(chan struct{})})
}

// Reclaim is Update for a closure that deletes: on a full disk it may use the
// space held in reserve for that, and what it deleted is gone from the log and
// given back at once. fn may run a second time, after its changes were undone.
func (s *Store) Reclaim(ctx context.Context, fn func(*Tx) error) error {
	return s.submit(ctx, &update{fn: fn, reclaim: true, done: make(chan struct{})})
}

func (s *Store) submit(ctx context.Context, u *update) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.closing: // also when the writer happens to be ready
		return ErrClosed
	default:
	}
	select {
	case s.updates <- u:
		<-u.done
		return u.err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return ErrClosed
	}
}

// write is the writer goroutine: it alone uses s.writer.
func (s *Store) write() {
	defer close(s.ended)
	idle := time.NewTimer(idleDelay)
	defer idle.Stop()
	s.emptied = time.Now()
	group := make([]*update, 0, maxGroup)
	for {
		select {
		case u := <-s.updates:
			group = append(group[:0], u)
		case <-idle.C:
			if !s.emptyLog() {
				idle.Reset(idleDelay)
			}
			if s.spent {
				s.restoreReserve()
			}
			continue
		case <-s.closing:
			return
		}
	gather:
		for len(group) < maxGroup {
			select {
			case u := <-s.updates:
				group = append(group, u)
			default:
				break gather
			}
		}
		s.commit(group)
		clear(group)
		idle.Reset(idleDelay)
	}
}

// commit runs a group of updates and answers all of them.
func (s *Store) commit(group []*update) {
	// Whoever adds waits until there is a reserve for those who delete.
	if s.spent && !s.restoreReserve() {
		group = refuse(group, ErrFull)
	}
	if len(group) == 0 {
		return
	}
	err := s.attempt(group)
	if errors.Is(err, ErrFull) {
		// Empty the log: that may make room, and what it holds of the change
		// that was just undone must not be found there by the next Open.
		if !s.emptyLog() {
			s.spendReserve()
			s.emptyLog()
			s.restoreReserve() // the log was at least as big as what moved
		}
		if group = refuse(group, err); len(group) == 0 {
			return
		}
		s.spendReserve()
		err = s.attempt(group)
	}
	var erased []*update
	for _, u := range group {
		if err == nil && u.err == nil {
			for _, hook := range u.tx.hooks {
				hook()
			}
			if u.reclaim || u.tx.erase {
				erased = append(erased, u)
				continue
			}
		}
		u.answer(err)
	}
	if len(erased) > 0 || time.Since(s.emptied) > maxLogAge {
		s.emptyLog()
	}
	for _, u := range erased {
		u.answer(nil)
	}
}

// refuse answers all but those who delete, and returns these.
func refuse(group []*update, err error) []*update {
	var rest []*update
	for _, u := range group {
		if u.reclaim {
			rest = append(rest, u)
		} else {
			u.answer(err)
		}
	}
	return rest
}

// answer releases the caller of Update: with the group's error, if there is
// one, or else with the closure's own.
func (u *update) answer(groupErr error) {
	if groupErr != nil {
		u.err = groupErr
	}
	close(u.done)
}

// attempt runs the closures and commits. The error it returns is the group's.
func (s *Store) attempt(group []*update) error {
	select {
	case <-s.failed:
		return ErrReadOnly
	default:
	}
	err := s.transact(group)
	if err != nil {
		s.writer.rollback()
		err = classify(err)
		for _, u := range group {
			if u.tx != nil && u.err == nil {
				for _, undo := range u.tx.undo {
					undo()
				}
			}
		}
	}
	// A sync can also have failed out of SQLite's sight, while it moved pages
	// from the log into the database after the commit. What was committed
	// before that is safe in the log and is acknowledged; nothing after it.
	if cause := s.vfs.failure(); cause != nil {
		s.fail(cause)
	}
	if errors.Is(err, sqlite3.IOERR) && !errors.Is(err, ErrDamaged) {
		s.fail(err)
		return fmt.Errorf("%w (%w)", ErrReadOnly, err)
	}
	return err
}

func (s *Store) fail(cause error) {
	s.failOnce.Do(func() {
		s.log.Error("saving failed; the store is read-only from here on", "cause", cause)
		close(s.failed)
	})
}

// errRolledBack: SQLite gave up the whole transaction inside a closure.
var errRolledBack = errors.New("the transaction was rolled back")

// transact runs the group's closures in one transaction and commits what
// succeeded.
func (s *Store) transact(group []*update) error {
	c := s.writer
	if err := c.exec(`BEGIN IMMEDIATE`); err != nil {
		return err
	}
	kept := 0
	for _, u := range group {
		// A lone update needs no savepoint: its failure is the transaction's.
		savepoint := len(group) > 1
		if savepoint {
			if err := c.exec(`SAVEPOINT u`); err != nil {
				return err
			}
		}
		u.tx = &Tx{conn: c, seal: s.seal, write: true}
		u.err = call(u.tx, u.fn)
		if c.db.GetAutocommit() {
			return rolledBack(u.err)
		}
		if u.err != nil {
			// Whatever the closure made of them, these mean that the rest of
			// the transaction cannot be written either.
			if isDiskError(u.err) {
				return u.err
			}
			if savepoint {
				if err := c.exec(`ROLLBACK TO u`); err != nil {
					return err
				}
			}
		} else {
			kept++
		}
		if savepoint {
			if err := c.exec(`RELEASE u`); err != nil {
				return err
			}
		}
	}
	if kept == 0 {
		c.rollback()
		return nil
	}
	return c.exec(`COMMIT`)
}

func rolledBack(err error) error {
	if err = classify(err); isDiskError(err) || errors.Is(err, ErrDamaged) {
		return err
	}
	return errRolledBack
}

// isDiskError says that err came from writing, not from what was written.
func isDiskError(err error) bool {
	if errors.Is(err, ErrDamaged) {
		return false // reading failed; other rows may be whole
	}
	return errors.Is(err, sqlite3.FULL) || errors.Is(err, sqlite3.IOERR)
}

// call runs fn on a goroutine of its own, so that neither a panic nor a
// runtime.Goexit (a test's FailNow) takes the writer along.
func call(tx *Tx, fn func(*Tx) error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer tx.end()
		err = errors.New("the closure of an update ended its goroutine")
		defer func() {
			if v := recover(); v != nil {
				err = &PanicError{Value: v, Stack: debug.Stack()}
			}
		}()
		err = fn(tx)
	}()
	<-done
	return err
}

// emptyLog moves the log into the database and cuts it to nothing, so that no
// old version of any page is left. It says whether it managed to: a view that
// still reads from the log prevents it.
func (s *Store) emptyLog() bool {
	select {
	case <-s.failed:
		return true // never again
	default:
	}
	_, _, err := s.writer.db.WALCheckpoint("", sqlite3.CHECKPOINT_TRUNCATE)
	if cause := s.vfs.failure(); cause != nil {
		s.fail(cause)
		return true
	}
	switch {
	case err == nil:
		s.emptied = time.Now()
		return true
	case errors.Is(err, sqlite3.BUSY), errors.Is(err, sqlite3.FULL):
		return false
	}
	s.fail(err)
	return true
}

// restoreReserve sees to it that the reserve is there, and says whether it is.
func (s *Store) restoreReserve() bool {
	s.spent = true
	name := filepath.Join(s.dir, reserveName)
	f, err := s.disk.open(name, true)
	if err != nil {
		return false
	}
	if err := errors.Join(fillReserve(f), f.Close()); err != nil {
		_ = s.disk.remove(name) // a part of it would only take room
		return false
	}
	s.spent = false
	return true
}

// fillReserve writes what is missing of the reserve.
func fillReserve(f diskFile) error {
	at, err := f.Size()
	if err != nil {
		return err
	}
	ballast := make([]byte, 1<<20)
	for ; at < reserveSize; at += int64(len(ballast)) {
		rand.Read(ballast) // so that no file system compresses it away
		if _, err := f.WriteAt(ballast, at); err != nil {
			return err
		}
	}
	return nil
}

// spendReserve gives the space of the reserve back to the disk.
func (s *Store) spendReserve() {
	if !s.spent {
		s.log.Warn("the disk is full: the reserve makes room for deleting")
	}
	s.spent = true
	_ = s.disk.remove(filepath.Join(s.dir, reserveName)) // it may be gone already
}
