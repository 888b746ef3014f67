package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Check walks everything: each extent that is said to be present must have its digest, the sizes of
// objects must be those on disk, and the budget must be the sum of what there is. It is for tests and for
// repair. It waits for fetches that are under way, also those that no reader waits for. Meanwhile nobody may
// begin a fetch, use objects, or import.
func (c *Cache) Check() error {
	for _, f := range c.snapshotFiles() {
		f.awaitJobs()
	}
	var errs []error
	sum := int64(0)
	for _, f := range c.snapshotFiles() {
		errs = append(errs, f.check())
		sum += f.allocated()
	}
	objects, err := c.objects.Check()
	imports, ierr := c.checkImports()
	errs = append(errs, err, ierr)
	sum += objects + imports
	if used, _ := c.Usage(); used != sum {
		errs = append(errs, fmt.Errorf("%d bytes are accounted for, %d are there", used, sum))
	}
	return errors.Join(errs...)
}

func (f *File) check() error {
	n, bytes := 0, int64(0)
	for i := range uint32(f.t.nExtents) {
		if !f.has(i) {
			continue
		}
		e := f.t.extent(i)
		p := make([]byte, e.Len)
		if _, err := f.img.ReadAt(p, e.Off); err != nil {
			return fmt.Errorf("image %s: %w", f.id, err)
		}
		if sha256.Sum256(p) != e.Digest {
			return fmt.Errorf("image %s: extent at %d is said to be present and has other bytes: %w", f.id, e.Off, ErrCorrupt)
		}
		n++
		bytes += pages(int64(e.Len))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n != f.nPresent || bytes != f.bytes {
		return fmt.Errorf("image %s: %d extents of %d bytes are present, the counts say %d and %d", f.id, n, bytes, f.nPresent, f.bytes)
	}
	return nil
}

// checkImports returns how many bytes interrupted imports have left.
func (c *Cache) checkImports() (sum int64, err error) {
	left, err := filepath.Glob(filepath.Join(c.dir, importsDir, "*", packedFile))
	if err != nil {
		return 0, err
	}
	for _, path := range left {
		st, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		sum += pages(st.Size())
	}
	return sum, nil
}

// Commit records everything that was filled so far and returns when that is on stable storage.
func (c *Cache) Commit() error {
	var errs []error
	for _, f := range c.snapshotFiles() {
		errs = append(errs, f.commit())
	}
	return errors.Join(errs...)
}
