package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const lockName = "lock"

// homeLock is the exclusive hold on a data directory. The system gives it up
// when the process ends, however it ends; the file stays and names the holder.
type homeLock struct{ f *os.File }

func lockHome(dir string) (*homeLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := tryLock(f); err != nil {
		defer f.Close()
		if !errors.Is(err, errHeld) {
			return nil, fmt.Errorf("lock the data directory: %w", err)
		}
		text, _ := io.ReadAll(io.LimitReader(f, 32))
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid <= 0 {
			pid = 0
		}
		return nil, &InUseError{PID: pid}
	}
	// Who holds the lock is only for the message: failing to write it is no reason to stop.
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintf(io.NewOffsetWriter(f, 0), "%d\n", os.Getpid())
	}
	return &homeLock{f: f}, nil
}

func (l *homeLock) release() error { return l.f.Close() }
