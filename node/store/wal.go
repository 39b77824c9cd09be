package store

import (
	"errors"
	"io"
	"math"
	"slices"
	"sync"
)

const (
	// maxLogEnd is how much of the log is gathered in memory before it is
	// written: a commit of a few messages goes out in one write.
	maxLogEnd = 64 * blockSize

	// logHeader is the size of what SQLite writes at the log's start when it
	// begins to fill it anew, and logFrame that of a page in it.
	logHeader = 32
	logFrame  = 24 + blockSize
)

// logEnd is the end of the log in the clear, shared by the handles of all
// connections. SQLite appends a frame in pieces that end anywhere, and waits
// for nothing but a sync: until then the pieces are gathered here, and each
// block is enciphered and written once.
//
// After a commit's last frame SQLite repeats that frame up to the next sector
// (rule 2 in vfs.go), and syncs where the sector begins: what remains of the
// repeated frame comes after the sync. Readers may look for the page there, so
// it has to stay; but the log is whole without it, so it stays in memory until
// the next commit writes the block it ends in.
type logEnd struct {
	mu    sync.RWMutex // written to under Lock, read from under RLock
	name  string       // of the log; empty: not open yet
	start int64        // where bytes belong, a multiple of blockSize
	bytes []byte       // whole blocks, the last one filled up with zeros
	fresh bool         // bytes differ from the file
	owed  bool         // the next sync has to write them
	tip   int64        // where the last piece ended
	sync  int64        // where that was at the last sync
	kept  int64        // where that was at the last commit: so far it survives a write that fails
	end   int64        // blocks from here on hold nothing
	box   []byte       // bytes enciphered
}

func (l *logEnd) opened(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.name != name {
		l.name = name
		l.reset(math.MaxInt64) // a crash may have left anything
	}
}

func (l *logEnd) removed(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.name == name {
		l.name = ""
		l.reset(0)
	}
}

// reset forgets what was gathered. The caller holds mu.
func (l *logEnd) reset(end int64) {
	clear(l.bytes[:cap(l.bytes)])
	l.start, l.bytes, l.fresh, l.owed = 0, l.bytes[:0], false, false
	l.tip, l.sync, l.kept, l.end = 0, 0, 0, end
}

// limit is where bytes end.
func (l *logEnd) limit() int64 { return l.start + int64(len(l.bytes)) }

// size is the least that the log's size is, if anything was gathered.
func (l *logEnd) size() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.bytes) == 0 {
		return 0
	}
	return l.limit()
}

func (f *cryptFile) readLog(p []byte, off int64) (n int, err error) {
	l := &f.vfs.log
	l.mu.RLock()
	defer l.mu.RUnlock()
	for n < len(p) {
		at := off + int64(n)
		if at >= l.start && at < l.limit() {
			n += copy(p[n:], l.bytes[at-l.start:])
			continue
		}
		start := at &^ (blockSize - 1)
		want := min((at-start+int64(len(p)-n)+blockSize-1)&^(blockSize-1), int64(len(f.blocks)))
		if start < l.start {
			want = min(want, l.start-start)
		}
		m, err := f.file.ReadAt(f.blocks[:want], start)
		m &^= blockSize - 1
		if m == 0 {
			if err == nil {
				err = io.EOF
			}
			return n, err
		}
		for i := 0; i < m; i += blockSize {
			f.cipher.Decrypt(f.blocks[i:i+blockSize], f.setTweak(start+int64(i)))
		}
		n += copy(p[n:], f.blocks[at-start:m])
	}
	return n, nil
}

func (f *cryptFile) writeLog(p []byte, off int64) (n int, err error) {
	l := &f.vfs.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if off == 0 && len(p) == logHeader {
		l.end = 0
	}
	for n < len(p) {
		at := off + int64(n)
		if at < l.start || at > l.limit() || len(l.bytes) >= maxLogEnd && at == l.limit() {
			if err := f.flushLog(); err != nil {
				return n, err
			}
		}
		if at < l.start || at > l.limit() {
			l.start, l.bytes, l.kept = at&^(blockSize-1), l.bytes[:0], at
		}
		if at >= l.limit() {
			if err := f.growLog(at == l.limit() && len(p)-n >= blockSize); err != nil {
				return n, err
			}
		}
		m := copy(l.bytes[at-l.start:], p[n:])
		n += m
		l.tip = at + int64(m)
		l.end = max(l.end, l.tip)
		l.fresh, l.owed = true, true
	}
	return n, nil
}

// growLog adds the next block to what is gathered. Unless it is about to be
// filled, what the file has there is read.
func (f *cryptFile) growLog(filled bool) error {
	l := &f.vfs.log
	start := l.limit()
	l.bytes = slices.Grow(l.bytes, blockSize)[:len(l.bytes)+blockSize]
	b := l.bytes[start-l.start:]
	if !filled && start < l.end {
		err := f.readBlock(b, start)
		if err == nil {
			return nil
		} else if !errors.Is(err, io.EOF) {
			l.bytes = l.bytes[:start-l.start]
			return err
		}
	}
	clear(b)
	return nil
}

// flushLog writes what was gathered, and keeps of it the block that the log
// ends in. If that fails, it keeps what was committed before.
func (f *cryptFile) flushLog() error {
	l := &f.vfs.log
	if !l.fresh {
		return nil
	}
	l.box = append(l.box[:0], l.bytes...)
	for i := 0; i < len(l.box); i += blockSize {
		f.cipher.Encrypt(l.box[i:i+blockSize], f.setTweak(l.start+int64(i)))
	}
	l.owed = false
	if _, err := f.file.WriteAt(l.box, l.start); err != nil {
		kept := min(max(0, l.kept-l.start), int64(len(l.bytes)))
		l.bytes = l.bytes[:(kept+blockSize-1)&^(blockSize-1)]
		clear(l.bytes[kept:])
		l.fresh = kept > 0
		return err
	}
	l.fresh = false
	whole := max(0, min(l.end-l.start, int64(len(l.bytes)))) &^ (blockSize - 1)
	l.start += whole
	l.bytes = l.bytes[:copy(l.bytes, l.bytes[whole:])]
	return nil
}

// settleLog writes what a commit needs.
func (f *cryptFile) settleLog() error {
	l := &f.vfs.log
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sync = l.tip
	if !l.owed {
		return nil
	}
	return f.flushLog()
}

// CommitPhaseTwo is called on the database when a transaction is committed.
// If the log has been given less than a frame since the sync, that is the rest
// of the padding.
func (f *cryptFile) CommitPhaseTwo() error {
	l := &f.vfs.log
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = l.tip
	if rest := l.tip - l.sync; rest >= 0 && rest < logFrame {
		l.owed = false
	}
	return nil
}

func (f *cryptFile) cutLog(size int64) error {
	l := &f.vfs.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if size > 0 {
		if err := f.flushLog(); err != nil {
			return err
		}
	}
	l.reset(size)
	return f.file.Truncate((size + blockSize - 1) &^ (blockSize - 1))
}
