package cache

import (
	"fmt"
	"os"
	"path/filepath"
)

// commit syncs the image's data and then records what was filled. The order is what makes the
// record true.
func (f *File) commit() error {
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	f.mu.Lock()
	runs := f.dirty
	f.dirty = nil
	gone := f.gone
	f.mu.Unlock()
	if gone || (len(runs) == 0 && f.record != nil) {
		return nil
	}
	if f.unsafe {
		return nil // the next life makes it anew
	}
	if err := f.sync(runs, false); err != nil {
		return fmt.Errorf("sync image: %w", err)
	}
	err := f.recordRuns(runs)
	if err != nil {
		f.mu.Lock()
		f.dirty = append(runs, f.dirty...)
		f.mu.Unlock()
	}
	return err
}

// recordRuns records what was synced.
func (f *File) recordRuns(runs []run) error {
	if f.record == nil {
		return f.firstCommit(runs)
	}
	return f.record.append(runs)
}

// firstCommit puts the file's other parts on stable storage; the presence record, made last,
// says that all of it is there.
func (f *File) firstCommit(runs []run) error {
	parts := []string{tableFile}
	if f.points != nil {
		parts = append(parts, pointsFile)
	}
	if f.Known() {
		parts = append(parts, plainFile)
	}
	for _, part := range parts {
		if err := syncPath(filepath.Join(f.dir, part)); err != nil {
			return err
		}
	}
	r, err := createPresence(filepath.Join(f.dir, presenceFile), f.t.sum, runs)
	if err != nil {
		return err
	}
	if err := syncPath(f.c.dir); err != nil {
		r.close() // the next commit makes it again
		return err
	}
	f.record = r
	return nil
}

// syncPath puts a directory, or a file, on stable storage.
func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
