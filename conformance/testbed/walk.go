package testbed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/boltfile"
)

// walkRoot walks what an ended remorad has left below its root: the database of snapshots and the cache. Neither need be there.
func walkRoot(root string) error {
	return errors.Join(walkDatabase(filepath.Join(root, "metadata.db")), walkCache(filepath.Join(root, "cache")))
}

func walkDatabase(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // only read
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := boltfile.Check(f, st.Size()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func walkCache(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	c, err := cache.Open(dir, cache.Options{})
	if err == nil {
		err = errors.Join(c.Check(), c.Close())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}
