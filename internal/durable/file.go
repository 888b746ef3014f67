package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// prefix begins the names of files that have not got their name yet.
const prefix = ".new-"

// A File will replace another one, or none. Nobody sees it before Commit.
//
// Several may be under way for one path, in one process or in several: the last Commit wins. The caller writes by the methods
// of os.File and calls Close in any case.
type File struct {
	*os.File
	path string
	over bool // it has its name, or had to be given up
}

// Create begins to replace the file at path, whose directory must be there. If that file exists, the new one keeps its
// permission bits, else it gets those of mode, whatever the umask.
func Create(path string, mode fs.FileMode) (*File, error) {
	if old, err := os.Stat(path); err == nil && old.Mode().IsRegular() {
		mode = old.Mode().Perm()
	}
	f, err := createLocked(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	next := &File{File: f, path: path}
	if err := f.Chmod(mode); err != nil {
		return nil, errors.Join(err, next.Close())
	}
	return next, nil
}

// createLocked returns a new file that Sweep leaves alone while it is open.
func createLocked(dir string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(dir, prefix+"*")
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := errors.Join(lock(f, unix.LOCK_EX), unix.Fstat(int(f.Fd()), &st)); err != nil {
			return nil, errors.Join(err, os.Remove(f.Name()), f.Close())
		}
		if st.Nlink > 0 {
			return f, nil
		}
		f.Close() // Sweep removed it before it was locked
	}
}

// Commit has the file replace the one at its path. It returns when content and name are on stable storage. After an error the
// path has the old content or the new one.
func (f *File) Commit() error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), f.path); err != nil {
		return err
	}
	f.over = true
	return SyncDir(filepath.Dir(f.path))
}

// Close closes the file. One that was not committed is gone, and its path has the old content.
func (f *File) Close() error {
	if f.over {
		return f.File.Close()
	}
	f.over = true
	return errors.Join(os.Remove(f.Name()), f.File.Close()) // in this order: the lock keeps Sweep away
}

// Sweep removes what replacements have left in a directory that a power cut or a kill ended. It is for directories that are
// ours, and leaves alone what anybody is writing.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && e.Type().IsRegular() {
			errs = append(errs, sweepFile(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func sweepFile(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has its name by now
	}
	if err != nil {
		return err
	}
	defer f.Close() // only read
	if err := lock(f, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil // somebody writes it
	} else if err != nil {
		return err
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lock takes a file's lock, which ends when the file is closed.
func lock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
