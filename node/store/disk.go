package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// disk is where database blocks go: the real one, and in tests one that fails.
type disk interface {
	open(path string, create bool) (diskFile, error)
	exists(path string) (bool, error)
	remove(path string) error
	removeAll(dir string) error
	rename(from, to string) error
	syncDir(dir string) error
}

type diskFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
	Size() (int64, error)
}

// osDisk is the file system.
type osDisk struct{}

type osFile struct{ *os.File }

func (osDisk) open(path string, create bool) (diskFile, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (osDisk) remove(path string) error     { return os.Remove(path) }
func (osDisk) removeAll(dir string) error   { return os.RemoveAll(dir) }
func (osDisk) rename(from, to string) error { return os.Rename(from, to) }

func (f osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}
