package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/boltfile"
)

// walkRoot walks what an ended remorad has left below its root: the database of snapshots, the cache, and its records of volumes and
// disks. None need be there.
func walkRoot(root string) error {
	return errors.Join(walkDatabase(filepath.Join(root, "metadata.db")), walkCache(filepath.Join(root, "cache")),
		walkRecords(root))
}

// walkRecords reads what remorad knows of volumes and disks over restarts. What a journal holds is read by whoever attaches its volume.
func walkRecords(root string) error {
	var errs []error
	for _, name := range []string{"volumes/node.json", "volumes/volumes.json", "disks.json"} {
		path := filepath.Join(root, name)
		p, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var kept struct {
			Version  int             // of all but the first
			Node     json.RawMessage // of the first
			Attached []struct {
				ID, Store string
				Size      int64
			}
		}
		if err == nil {
			err = json.Unmarshal(p, &kept)
		}
		if err == nil && kept.Version == 0 && kept.Node == nil {
			err = errors.New("it has neither a version nor a node")
		}
		for _, a := range kept.Attached {
			if a.ID == "" || a.Store == "" || a.Size <= 0 {
				err = errors.Join(err, fmt.Errorf("volume %+v is attached", a))
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	return errors.Join(errs...)
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
