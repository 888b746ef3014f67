package image

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
)

// An Import is an image that comes whole, from its blob read once from start to end: its data is written
// as it is decoded, and its metadata when all of it is known.
//
// The packed bytes are kept beside it until then, so that an import which was interrupted, by whatever,
// goes on where it was.
type Import struct {
	d    *Dir
	id   string
	dir  string
	file *os.File
	// Held are the packed bytes that an earlier try has left, from the blob's start.
	Held int64
	paid atomic.Int64 // bytes of the budget, of packed and of the image

	mu     sync.Mutex // guards packed, size and read
	packed *os.File   // nil once it is no longer kept
	size   int64      // of packed
	read   bool       // what was held was read

	buf     []byte // data that is not written yet
	bufOff  int64
	missing []dataRange // for which there was no room
	stored  []dataRange // what was written, in pages
	written int64       // where the pages end that were written, or would have been
}

type dataRange struct{ off, end int64 }

const (
	importsDir   = ".imports"
	packedFile   = "packed"
	importsKept  = 24 * time.Hour // packed bytes that nobody came back for
	importBuffer = 1 << 20
	importPoll   = 20 * time.Millisecond
	// DataStart is where an imported image's data begins: behind the most metadata that there can be.
	DataStart = 4 << 30
)

func (d *Dir) importPath(id string) string { return filepath.Join(d.path, importsDir, id) }

// Import begins the import of a blob that id names, or goes on with one. There is one at a time of an id: it
// waits for the end of another. Finish or Stop must be called. Data is written by one goroutine; Keep may be
// called by another.
func (d *Dir) Import(ctx context.Context, id string) (*Import, error) {
	for !d.beginImport(id) {
		select {
		case <-time.After(importPoll):
		case <-ctx.Done():
			return nil, fmt.Errorf("import image %s: it is under way already: %w", id, context.Cause(ctx))
		}
	}
	im := &Import{d: d, id: id, dir: d.importPath(id), buf: make([]byte, 0, importBuffer)}
	if err := im.open(); err != nil {
		im.Stop(true)
		return nil, fmt.Errorf("import image %s: %w", id, err)
	}
	return im, nil
}

func (im *Import) open() (err error) {
	if err := os.MkdirAll(im.dir, 0o700); err != nil {
		return err
	}
	if im.packed, err = os.OpenFile(filepath.Join(im.dir, packedFile), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	st, err := im.packed.Stat()
	if err != nil {
		return err
	}
	im.Held, im.size = st.Size(), st.Size()
	im.paid.Store(pages(st.Size())) // counted by Open, or by the try that left it
	im.file, err = os.OpenFile(filepath.Join(im.dir, imageFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	return err
}

// Packed reads the packed bytes that are held.
func (im *Import) Packed() io.Reader { return io.NewSectionReader(im.packed, 0, im.Held) }

// Keep adds packed bytes to those that are held, which were read before. Nothing else goes for
// them: without room they are not kept, and an import that is interrupted begins anew.
func (im *Import) Keep(p []byte) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.read = true
	if im.packed == nil || len(p) == 0 {
		return
	}
	if need := pages(im.size+int64(len(p))) - pages(im.size); need > 0 {
		if im.d.budget.TryReserve(need) > 0 {
			im.forgetLocked()
			return
		}
		im.paid.Add(need)
	}
	if _, err := im.packed.WriteAt(p, im.size); err != nil {
		im.forgetLocked()
		return
	}
	im.size += int64(len(p))
}

// Whole returns all packed bytes, if they were kept.
func (im *Import) Whole() (io.Reader, int64, bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.packed == nil {
		return nil, 0, false
	}
	return io.NewSectionReader(im.packed, 0, im.size), im.size, true
}

// forgetPacked gives up what is held, if it was read.
func (im *Import) forgetPacked() {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.read || im.Held == 0 {
		im.forgetLocked()
	}
}

func (im *Import) forgetLocked() {
	if im.packed == nil {
		return
	}
	im.packed.Close() // it is removed
	_ = os.Remove(filepath.Join(im.dir, packedFile))
	im.d.budget.Add(-pages(im.size))
	im.paid.Add(-pages(im.size))
	im.packed, im.size = nil, 0
}

// WriteAt takes data of files, in the order of the offsets, of which the first is DataStart or more.
// What there is no room for is dropped; Finish says so.
func (im *Import) WriteAt(p []byte, off int64) (int, error) {
	n := len(p)
	for len(p) > 0 {
		gap := off - (im.bufOff + int64(len(im.buf)))
		if len(im.buf) > 0 && (gap < 0 || gap >= int64(cap(im.buf)-len(im.buf)) || gap > 2*4096) {
			if err := im.flush(); err != nil {
				return 0, err
			}
		}
		if len(im.buf) == 0 {
			im.bufOff, gap = off, 0
		}
		im.buf = append(im.buf, make([]byte, gap)...)
		k := min(len(p), cap(im.buf)-len(im.buf))
		im.buf = append(im.buf, p[:k]...)
		p, off = p[k:], off+int64(k)
		if len(im.buf) == cap(im.buf) {
			if err := im.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// flush writes what is buffered, if there is room.
func (im *Import) flush() error {
	if len(im.buf) == 0 {
		return nil
	}
	off, end := im.bufOff, im.bufOff+int64(len(im.buf))
	// Whole pages; the first may have been paid for by what was written before.
	paid := dataRange{max(off&^4095, im.written), pages(end)}
	im.written = paid.end
	err := errNoSpace
	need := paid.end - paid.off
	room := im.d.budget.Reserve(need)
	if !room {
		im.forgetPacked()
		room = im.d.budget.Reserve(need)
	}
	if room {
		im.paid.Add(need)
		err = im.writeOut(off)
	}
	im.buf = im.buf[:0]
	if errors.Is(err, errNoSpace) || errors.Is(err, unix.ENOSPC) {
		im.missing = append(im.missing, dataRange{off, end})
		im.d.metrics.unstored.Inc()
		return nil
	}
	if k := len(im.stored); k > 0 && im.stored[k-1].end == paid.off {
		im.stored[k-1].end = paid.end
	} else if paid.off < paid.end {
		im.stored = append(im.stored, paid)
	}
	return err
}

// writeOut writes what is buffered. A whole buffer of zeros is a hole, as it was before: zeros cost a layer next to nothing, and
// would keep the disk from others. It is paid for all the same.
func (im *Import) writeOut(off int64) error {
	if n := len(im.buf); n > 0 && n == cap(im.buf) && im.buf[0] == 0 && bytes.Equal(im.buf[1:], im.buf[:n-1]) {
		return nil
	}
	_, err := im.file.WriteAt(im.buf, off)
	return err
}

var errNoSpace = errors.New("no room")

// Finish makes an image called id of it, which Add lists. Of its extents those are present that were written, and
// its content is known to be diffID's. It may be mounted immediately; it survives a crash of the machine once
// its first commit is done. remove takes away the image that has the name, if there is one.
func (im *Import) Finish(id string, spec Spec, diffID digest.Digest, remove func() error) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("import image %s: %w", id, err)
			im.Stop(false)
		}
	}()
	if err := im.flush(); err != nil {
		return nil, err
	}
	if len(im.missing) > 0 && spec.Codec == blob.Whole {
		return nil, fmt.Errorf("a layer that is one piece must fit whole: %w", ErrNoRoom)
	}
	im.mu.Lock()
	im.forgetLocked() // all of it was read
	im.mu.Unlock()
	spec.imported = true
	m, err := im.d.make(id, im.dir, im.file, &spec)
	for n := int64(1 << 20); errors.Is(err, ErrNoRoom) && spec.Codec != blob.Whole && im.giveBack(n); n *= 2 {
		m, err = im.d.make(id, im.dir, im.file, &spec)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			im.d.budget.Add(-m.fixed())
			m.Close()
		}
	}()
	here := im.markWritten(m)
	if err := m.proof.Remember(diffID); err != nil {
		return nil, err
	}
	if err := remove(); err != nil {
		return nil, err
	}
	if err := os.Rename(im.dir, im.d.file(id)); err != nil {
		return nil, err
	}
	place(m, im.d.file(id))
	im.d.endImport(im.id)
	punchUnused(im.file, &spec)
	im.d.budget.Add(here - im.paid.Load()) // replaced files were written, too
	return m, nil
}

// giveBack drops up to n bytes of what was written last, for metadata that there is no room for. It
// reports whether there was any.
func (im *Import) giveBack(n int64) bool {
	if len(im.stored) == 0 {
		return false
	}
	last := &im.stored[len(im.stored)-1]
	from := max(last.off, last.end-pages(n))
	if err := punchHole(im.file, from, last.end-from); err != nil {
		return false
	}
	im.paid.Add(from - last.end)
	im.d.budget.Add(from - last.end)
	im.missing = append(im.missing, dataRange{from, last.end})
	if last.end = from; last.off == from {
		im.stored = im.stored[:len(im.stored)-1]
	}
	return true
}

// markWritten marks all of an image's extents but those that share a byte with what is missing, and returns their bytes.
func (im *Import) markWritten(m *Image) int64 {
	missing := im.missing
	slices.SortFunc(missing, func(a, b dataRange) int { return cmp.Compare(a.off, b.off) })
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range uint32(m.table.NExtents) {
		e := m.table.Extent(i)
		for len(missing) > 0 && missing[0].end <= e.Off {
			missing = missing[1:]
		}
		if len(missing) > 0 && missing[0].off < e.End() {
			continue
		}
		m.held.mark(i, true)
		m.held.note(i)
	}
	return m.held.bytes
}

// punchUnused gives back what was written for files that later entries of the archive replaced. Failing
// costs disk space alone.
func punchUnused(img *os.File, spec *Spec) {
	all := slices.Clone(spec.Extents) // sorted by encodeTable
	end := int64(DataStart)
	for _, e := range all {
		if off := pages(end); e.Off-off >= 4096 {
			_ = punchHole(img, off, e.Off-off)
		}
		end = e.End()
	}
	if off := pages(end); spec.ImageSize > off {
		_ = punchHole(img, off, spec.ImageSize-off)
	}
}

// Stop ends an import that will not be finished. What arrived is kept for the next try, unless it is
// wrong.
func (im *Import) Stop(keep bool) {
	if im.file != nil {
		im.file.Close()
		_ = os.Remove(filepath.Join(im.dir, imageFile)) // else the next try truncates it
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	held := int64(0)
	if !keep {
		im.forgetLocked()
	} else if im.packed != nil {
		held = pages(im.size)
		im.packed.Close() // what could not be written is fetched again
	}
	im.d.budget.Add(held - im.paid.Swap(held))
	if held == 0 {
		_ = os.RemoveAll(im.dir) // else Open does
	}
	im.d.endImport(im.id)
}

// beginImport reports whether nobody imports id, and notes that somebody does.
func (d *Dir) beginImport(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.importing[id] {
		return false
	}
	d.importing[id] = true
	return true
}

func (d *Dir) endImport(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.importing, id)
}

// DropIdleImports removes what interrupted imports have left, for room, and returns how many bytes that
// freed.
func (d *Dir) DropIdleImports() (freed int64) {
	entries, err := os.ReadDir(filepath.Join(d.path, importsDir))
	if err != nil {
		return 0 // there are none
	}
	for _, e := range entries {
		if !d.beginImport(e.Name()) {
			continue
		}
		if st, err := os.Stat(filepath.Join(d.importPath(e.Name()), packedFile)); err == nil && os.RemoveAll(d.importPath(e.Name())) == nil {
			freed += pages(st.Size())
		}
		d.endImport(e.Name())
	}
	return freed
}

// sweepImports counts what interrupted imports have left, and removes what nobody came back for.
func (d *Dir) sweepImports() error {
	dir := filepath.Join(d.path, importsDir)
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, unix.ENOTDIR):
		d.log.Warn("something else is in the place of the imports, and is removed", "path", dir)
		return os.RemoveAll(dir)
	case err != nil:
		return err
	}
	for _, e := range entries {
		one := filepath.Join(dir, e.Name())
		st, err := os.Lstat(filepath.Join(one, packedFile))
		if err != nil || !st.Mode().IsRegular() || st.Size() == 0 || time.Since(st.ModTime()) > importsKept {
			if err := os.RemoveAll(one); err != nil {
				return err
			}
			continue
		}
		if err := os.RemoveAll(filepath.Join(one, imageFile)); err != nil {
			return err
		}
		d.budget.Add(pages(st.Size()))
	}
	return nil
}
