package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/internal/wire"
)

// New makes the image called id from a specification, where there is none. Add lists it. It survives a crash of the machine once
// its first commit is done.
func (d *Dir) New(id string, spec *Spec) (*Image, error) {
	m, err := d.create(id, spec)
	if err != nil {
		os.RemoveAll(d.file(id)) // what is left is overwritten by the next New
		return nil, fmt.Errorf("create image %s: %w", id, err)
	}
	if len(spec.Tail) > 0 {
		m.residue.add(uint32(m.table.NUnits-1), residuePacked, spec.Tail)
	}
	return m, nil
}

func (d *Dir) create(id string, spec *Spec) (*Image, error) {
	path := d.file(id)
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(path, imageFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	m, err := d.make(id, path, file, spec)
	if err != nil {
		file.Close()
		return nil, err
	}
	return m, nil
}

// make writes all but the data of an image into the directory at path, within the budget.
func (d *Dir) make(id, path string, file *os.File, spec *Spec) (_ *Image, err error) {
	enc, err := encodeTable(spec)
	if err != nil {
		return nil, err
	}
	var points []byte
	if spec.Codec == blob.Spans {
		points = encodePoints(spec, le.Uint32(enc[48:]))
	}
	cost := pages(spec.MetaSize) + pages(int64(len(enc))) + pages(int64(len(points)))
	if !d.budget.Reserve(cost) {
		return nil, fmt.Errorf("%d bytes of metadata: %w", cost, ErrNoRoom)
	}
	defer func() {
		if err != nil {
			d.budget.Add(-cost)
		}
	}()
	if err := os.WriteFile(filepath.Join(path, tableFile), enc, 0o600); err != nil {
		return nil, err
	}
	if points != nil {
		if err := os.WriteFile(filepath.Join(path, pointsFile), points, 0o600); err != nil {
			return nil, err
		}
	}
	sum := wire.NewSum()
	w := bufio.NewWriterSize(io.MultiWriter(io.NewOffsetWriter(file, 0), sum), 1<<20)
	n, err := spec.Meta.WriteTo(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil && n != spec.MetaSize {
		err = fmt.Errorf("metadata of %d bytes, not %d", n, spec.MetaSize)
	}
	if err == nil {
		err = file.Truncate(spec.ImageSize)
	}
	if err != nil {
		return nil, err
	}
	t, err := openTable(filepath.Join(path, tableFile))
	if err != nil {
		return nil, err
	}
	m, err := newImage(d, id, path, file, t)
	if err == nil {
		m.ledger.metaSum = sum.Sum32()
	}
	return m, err
}

// Load opens the image called id. Add lists it; its bytes are not counted yet. An error that wraps ErrNotFound or ErrCorrupt
// says that it must be made again.
func (d *Dir) Load(id string) (*Image, error) {
	m, err := d.load(id)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", id, err)
	}
	return m, nil
}

// checkFiles insists that only files lie in an image's directory, and none whose content would take all memory.
func checkFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return ErrNotFound
	}
	for _, e := range entries {
		st, err := e.Info()
		switch {
		case errors.Is(err, os.ErrNotExist): // it is swept
		case err != nil:
			return err
		case !st.Mode().IsRegular(), e.Name() != imageFile && e.Name() != residueFile && st.Size() > maxRecord:
			return fmt.Errorf("%w: %s is %v of %d bytes", ErrCorrupt, e.Name(), st.Mode(), st.Size())
		}
	}
	return err
}

// maxRecord bounds what is read of an image's table, points and presence record, in bytes.
const maxRecord = 1 << 30

func (d *Dir) load(id string) (*Image, error) {
	if err := checkFiles(d.file(id)); err != nil {
		return nil, err
	}
	path := d.file(id)
	t, err := openTable(filepath.Join(path, tableFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	if err := durable.Sweep(path); err != nil {
		return nil, err
	}
	file, err := d.openFile(id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	m, err := newImage(d, id, path, file, t)
	if err != nil {
		file.Close()
		return nil, err
	}
	if err := m.load(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// load reads what earlier lives have noted. It is called before anybody else has the image.
func (m *Image) load() error {
	t := m.table
	st, err := m.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() != t.ImageSize {
		return fmt.Errorf("%w: image of %d bytes, not %d", ErrCorrupt, st.Size(), t.ImageSize)
	}
	if err := m.ledger.load(); err != nil {
		return err
	}
	if t.Codec == blob.Whole && !m.held.all() {
		return fmt.Errorf("%w: not all of it was recorded, and it cannot be fetched by parts", ErrCorrupt)
	}
	m.proof.load()
	m.residue.load()
	if _, err := os.Stat(filepath.Join(m.path, keptFile)); err == nil {
		m.kept = true
	}
	return nil
}

// openFile opens an image file, or takes the descriptor that an earlier life has left: where the
// kernel reports reads of the file, only one that was opened before that may be written through.
func (d *Dir) openFile(id string) (*os.File, error) {
	path := filepath.Join(d.file(id), imageFile)
	held, err := d.openHeld(id)
	if err != nil {
		return nil, err
	}
	if held == nil {
		return os.OpenFile(path, os.O_RDWR, 0)
	}
	a, err := held.Stat()
	if err == nil {
		var b os.FileInfo
		if b, err = os.Stat(path); err == nil && !os.SameFile(a, b) {
			err = fmt.Errorf("%s was replaced", path)
		}
	}
	if err != nil {
		held.Close()
		return nil, err
	}
	return held, nil
}
