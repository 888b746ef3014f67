package image

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
)

const (
	tableFile    = "extents"
	imageFile    = "image"
	presenceFile = "present"
	residueFile  = "residue"
	plainFile    = "verified" // the digest of the plain blob, once it is known
	keptFile     = "kept"
)

// An Image is a sparse file that has some of its extents. Its metadata is there from the start.
type Image struct {
	d     *Dir
	id    string
	path  string // of its directory
	file  *os.File
	table *Table
	cut   cut

	// punch is held shared while extents of the image file are read or written, and exclusively
	// while they are taken away, so that no reader sees a hole instead of data.
	punch sync.RWMutex

	ledger ledger

	mu         sync.Mutex // guards the fields below
	held       held
	pins       int
	kept       bool // an operator wants it never evicted
	gone       bool // nobody reads or fills it from now on
	closed     bool
	acct       account
	recordings []*Recording

	residue Residue
	proof   Proof
	alike   likenesses
}

// newImage returns an image of parts that lie at path. The file stays the caller's if that fails.
func newImage(d *Dir, id, path string, file *os.File, t *Table) (*Image, error) {
	m := &Image{d: d, id: id, file: file, table: t, cut: cut{t: t}, held: newHeld(t), acct: account{t: t}}
	m.ledger.m = m
	m.residue = Residue{units: t.NUnits, budget: d.budget, codec: &d.residues}
	if t.Codec == blob.Spans {
		var err error
		if m.cut.points, err = openPoints(path, t); err != nil {
			return nil, err
		}
	}
	place(m, path)
	return m, nil
}

// place says where an image's directory is. It is called before anybody else has the image.
func place(m *Image, path string) {
	m.path = path
	m.residue.path, m.proof.path = filepath.Join(path, residueFile), filepath.Join(path, plainFile)
}

// ID returns the image's name in its Dir.
func (m *Image) ID() string { return m.id }

// Path returns where the image file lies. While the image is complete and pinned, the kernel may read it without us.
func (m *Image) Path() string { return filepath.Join(m.path, imageFile) }

// Table returns the image's table.
func (m *Image) Table() *Table { return m.table }

// File returns the open image file. It stays the image's.
func (m *Image) File() *os.File { return m.file }

// Residue returns what is kept of units besides extents.
func (m *Image) Residue() *Residue { return &m.residue }

// Proof returns what is known of the plain blob.
func (m *Image) Proof() *Proof { return &m.proof }

// Complete reports whether every extent is present.
func (m *Image) Complete() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held.all()
}

// Removed reports whether the image was removed, or closed.
func (m *Image) Removed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gone
}

// Disk returns the bytes on disk now, in constant time.
func (m *Image) Disk() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fixed() + m.held.bytes
}

func pages(n int64) int64 { return (n + 4095) &^ 4095 }

// fixed is what the image takes on disk whatever extents are here.
func (m *Image) fixed() int64 {
	n := pages(m.table.MetaSize) + pages(int64(len(m.table.data))) + m.residue.reserved.Load()
	if m.cut.points != nil {
		n += pages(m.cut.points.size)
	}
	return n
}

// Has reports whether an extent is present.
func (m *Image) Has(i uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held.has(i)
}

// HasUnit reports whether all extents of a unit are present.
func (m *Image) HasUnit(u uint32) bool {
	n, at := m.table.UnitExtents(u)
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range n {
		if !m.held.has(at(k)) {
			return false
		}
	}
	return true
}

// Wants reports whether fetching a unit would bring anything that is not here.
func (m *Image) Wants(u uint32) bool {
	if n, _ := m.table.UnitExtents(u); n > 0 {
		return !m.HasUnit(u)
	}
	return !m.proof.Known() && !m.residue.Has(u)
}

// ReadPresent reads what is here of extents [lo, hi) and everything between them, and returns
// the units of those that are not.
func (m *Image) ReadPresent(p []byte, off int64, lo, hi int) (missing []uint32, err error) {
	m.punch.RLock()
	defer m.punch.RUnlock()
	if missing, err = m.Use(lo, hi); err != nil {
		return nil, err
	}
	_, err = m.file.ReadAt(p, off)
	return missing, err
}

// Use notes that somebody reads extents [lo, hi) and returns the units of those that are not here.
func (m *Image) Use(lo, hi int) (missing []uint32, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return nil, ErrRemoved
	}
	now := m.d.budget.Now()
	for i := uint32(lo); i < uint32(hi); i++ {
		m.held.use(i, now)
		u := m.table.Extent(i).Unit
		if m.acct.ask(u) {
			m.d.metrics.prefetchUsed.Add(float64(m.table.Unit(u).Len))
		}
		for _, r := range m.recordings {
			r.noteLocked(i)
		}
		if m.held.has(i) {
			continue
		}
		if k := len(missing); k == 0 || missing[k-1] != u {
			missing = append(missing, u)
		}
	}
	return missing, nil
}

// ErrRemoved says that an image was removed from the cache.
var ErrRemoved = errors.New("image was removed")

// ErrMissing says that bytes are not here.
var ErrMissing = errors.New("not in the cache")

// Peek reads what is here, without counting as a reader. It fails if anything of the range is missing.
func (m *Image) Peek(p []byte, off int64) (int, error) {
	m.punch.RLock()
	defer m.punch.RUnlock()
	lo, hi := m.table.Overlapping(off, int64(len(p)))
	for i := lo; i < hi; i++ {
		if !m.Has(uint32(i)) {
			return 0, ErrMissing
		}
	}
	return m.file.ReadAt(p, off)
}

// Put stores an extent's bytes, which have its digest, if there is room or can be made.
func (m *Image) Put(i uint32, b []byte) {
	e := m.table.Extent(i)
	n := pages(int64(e.Len))
	if !m.d.budget.Reserve(n) {
		m.d.metrics.unstored.Inc()
		return
	}
	err := m.write(i, &e, b)
	if errors.Is(err, unix.ENOSPC) && m.d.budget.Evict(n) > 0 {
		err = m.write(i, &e, b)
	}
	if err != nil {
		m.d.budget.Add(-n)
		m.d.metrics.unstored.Inc()
		m.d.log.Warn("extent served without being stored", "digest", m.id, "off", e.Off, "len", e.Len, "err", err)
	}
}

// write puts an extent into the image and marks it. The space is reserved already.
func (m *Image) write(i uint32, e *Extent, b []byte) error {
	m.punch.RLock()
	defer m.punch.RUnlock()
	if m.Removed() {
		return ErrRemoved
	}
	if _, err := m.file.WriteAt(b, e.Off); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held.has(i) {
		m.d.budget.Add(-pages(int64(e.Len)))
		return nil
	}
	m.held.mark(i, true)
	m.held.note(i)
	m.held.use(i, m.d.budget.Now())
	if m.held.all() {
		m.d.Kick()
	}
	return nil
}

// Close closes without recording. Nothing is written behind a close, so errors say nothing.
func (m *Image) Close() {
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	m.punch.Lock()
	defer m.punch.Unlock()
	m.mu.Lock()
	already := m.closed
	m.gone, m.closed = true, true
	m.mu.Unlock()
	if already {
		return
	}
	m.file.Close()
	if m.ledger.record != nil {
		m.ledger.record.close()
	}
	if m.cut.points != nil {
		m.cut.points.f.Close()
	}
	m.residue.close()
}

// Discard ends all use of the image: nobody reads or fills it from then on, and nothing more is recorded. Close follows when those
// that fill it have ended.
func (m *Image) Discard() {
	m.mu.Lock()
	m.gone = true
	m.held.dirty = nil
	m.mu.Unlock()
}
