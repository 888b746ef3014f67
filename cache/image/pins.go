package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/remora-storage/remora/cache/blob"
)

// PinIfComplete keeps all extents where they are until Unpin, if all are here. The kernel may
// read a pinned file directly.
func (m *Image) PinIfComplete() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.held.all() || m.gone {
		return false
	}
	m.pins++
	return true
}

// Pin keeps all extents that are here, or come, until Unpin. The kernel may read a pinned file
// directly, if somebody fills it before.
func (m *Image) Pin() {
	m.mu.Lock()
	m.pins++
	m.mu.Unlock()
}

// Unpin undoes one Pin or PinIfComplete.
func (m *Image) Unpin() {
	m.mu.Lock()
	m.pins--
	m.mu.Unlock()
}

// Keep has the image never evicted, in this life and later ones, or as others are.
func (m *Image) Keep(keep bool) error {
	mark := filepath.Join(m.path, keptFile)
	var err error
	if keep {
		err = os.WriteFile(mark, nil, 0o600)
	} else if err = os.Remove(mark); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("keep image %s: %w", m.id, err)
	}
	m.mu.Lock()
	m.kept = keep
	m.mu.Unlock()
	return nil
}

// Kept reports whether an operator wants the image never evicted, and whether it may be now.
func (m *Image) Kept() (kept, evictable bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept, m.evictableLocked()
}

func (m *Image) evictableLocked() bool {
	return m.pins == 0 && !m.kept && !m.gone && m.table.Codec != blob.Whole
}

// Pinned returns the bytes on disk that cannot be evicted.
func (d *Dir) Pinned() (n int64) {
	for _, m := range d.Images() {
		m.mu.Lock()
		if !m.evictableLocked() {
			n += m.held.bytes
		}
		m.mu.Unlock()
	}
	return n
}

// Fits reports whether all of an image would fit the budget beside what cannot be evicted.
func Fits(m *Image) bool {
	_, limit := m.d.budget.Usage()
	if limit == 0 {
		return true
	}
	need := int64(0)
	for _, other := range m.d.Images() {
		other.mu.Lock()
		if other == m || !other.evictableLocked() {
			need += other.table.dataPages // once it is complete
		}
		other.mu.Unlock()
		need += other.fixed()
	}
	return need <= limit
}
