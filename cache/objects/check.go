package objects

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Check compares what is known of objects with their files, and returns how many bytes they take.
func (d *Dir) Check() (sum int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	entries, err := os.ReadDir(d.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, e := range entries {
		if d.all[objectKey(e.Name())] == nil {
			errs = append(errs, fmt.Errorf("object file %s is not accounted for", e.Name()))
		}
	}
	for key, b := range d.all {
		size, err := onDisk(d.file(key))
		if errors.Is(err, fs.ErrNotExist) {
			size, err = 0, nil
		}
		if err != nil {
			errs = append(errs, err)
		} else if size != b.size {
			errs = append(errs, fmt.Errorf("object %s: %d bytes are accounted for, %d are there", key, b.size, size))
		}
		sum += b.size
	}
	return sum, errors.Join(errs...)
}
