package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Check walks over all open images: each extent that is said to be present must have its digest. It returns how many bytes they
// and imports take. Nobody may fill an image meanwhile.
func (d *Dir) Check() (sum int64, err error) {
	var errs []error
	for _, m := range d.Images() {
		errs = append(errs, d.checkImage(m))
		sum += m.Disk()
	}
	imports, err := d.checkImports()
	return sum + imports, errors.Join(append(errs, err)...)
}

func (d *Dir) checkImage(m *Image) error {
	n, bytes := 0, int64(0)
	for i := range uint32(m.table.NExtents) {
		if !m.Has(i) {
			continue
		}
		e := m.table.Extent(i)
		p := make([]byte, e.Len)
		if _, err := m.file.ReadAt(p, e.Off); err != nil {
			return fmt.Errorf("image %s: %w", m.id, err)
		}
		if sha256.Sum256(p) != e.Digest {
			return fmt.Errorf("image %s: extent at %d is said to be present and has other bytes: %w", m.id, e.Off, ErrCorrupt)
		}
		n++
		bytes += pages(int64(e.Len))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := &m.held; n != h.n || bytes != h.bytes {
		return fmt.Errorf("image %s: %d extents of %d bytes are present, the counts say %d and %d", m.id, n, bytes, h.n, h.bytes)
	}
	return nil
}

// checkImports returns how many bytes interrupted imports have left.
func (d *Dir) checkImports() (sum int64, err error) {
	left, err := filepath.Glob(filepath.Join(d.path, importsDir, "*", packedFile))
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
