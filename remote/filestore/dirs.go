package filestore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// dirs are the directories of objects, below top. They are made when an object needs them and go when they are empty.
type dirs struct {
	top    string
	synced sync.Map // those that are known to be on stable storage, by path
}

// make makes a directory and those above it, each on stable storage when it returns: one that is there already may be so new
// that whoever made it has not synced it yet.
func (d *dirs) make(dir string) error {
	if dir == d.top {
		return nil
	}
	st, err := os.Stat(dir)
	if err == nil && !st.IsDir() {
		return fmt.Errorf("%s is no directory", dir)
	}
	if _, synced := d.synced.Load(dir); err == nil && synced {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := d.make(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncDir(parent); err != nil {
		return err
	}
	d.synced.Store(dir, true)
	return nil
}

// removeEmpty removes a directory, and those above it, while they are empty. It returns the first that stays, and whether one
// has gone.
func (d *dirs) removeEmpty(dir string) (stays string, gone bool) {
	for dir != d.top && unix.Rmdir(dir) == nil {
		d.synced.Delete(dir)
		dir, gone = filepath.Dir(dir), true
	}
	return dir, gone
}

// makeDir makes a directory and those above it that are not there, each on stable storage.
func makeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s is no directory", dir)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if err := makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
