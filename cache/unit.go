package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/internal/memory"
)

// memoryFor waits for the memory that a unit takes on its way: what of it is decoded, and its packed bytes if they are held. It
// is waited for before the first packed byte is, so that nobody who has memory waits for more.
func (f *File) memoryFor(ctx context.Context, unit uint32) (*memory.Share, error) {
	n, at := f.t.unitExtents(unit)
	plain, packed := int64(0), f.t.unit(unit).Len
	for k := range n {
		e := f.t.extent(at(k))
		plain = max(plain, int64(e.Inner)+int64(e.Len))
	}
	if f.t.codec == blob.Spans {
		plain = max(plain, f.points.plain(unit)+inflate.Window)
	} else if packed > maxHeld {
		packed = 0
	}
	host, _ := placeOf(f.source())
	share, err := f.c.opts.Memory.Acquire(ctx, host, plain+packed)
	if err != nil {
		return nil, fmt.Errorf("decode unit %d of %d packed bytes: %w", unit, f.t.unit(unit).Len, err)
	}
	return share, nil
}

// decodeUnit decodes a unit, checks its extents' digests and keeps what else is in it. All of
// the plain bytes go to also, if that is not nil.
func (f *File) decodeUnit(fill *unitFill, packed io.Reader, also io.Writer) error {
	n, at := f.t.unitExtents(fill.unit)
	need := int64(0)
	for k := range n {
		e := f.t.extent(at(k))
		need = max(need, int64(e.Inner)+int64(e.Len))
	}
	got, err := f.unpack(fill.unit, packed, need, also)
	if err != nil {
		var source *blob.SourceError
		if errors.As(err, &source) {
			return source.Err
		}
		return fmt.Errorf("%w: decode: %w", blob.ErrBytes, err)
	}
	for k := range n {
		e := f.t.extent(at(k))
		if sha256.Sum256(got.Plain[e.Inner:e.Inner+e.Len]) != e.Digest {
			return fmt.Errorf("%w: extent at %d of the image has another digest", blob.ErrBytes, e.Off)
		}
	}
	fill.plain = got.Plain
	if got.Whole && !f.residue.has(fill.unit) {
		f.keepResidue(fill.unit, f.gaps(fill.unit, got.Plain, got.Rest), false)
	}
	return nil
}

// unpack decodes a unit.
func (f *File) unpack(unit uint32, packed io.Reader, need int64, also io.Writer) (blob.Unpacked, error) {
	if f.t.codec != blob.Spans {
		return blob.Unpack(f.t.codec, packed, need, also)
	}
	u := f.t.unit(unit)
	at, n, err := f.points.at(unit, u.Off)
	if err != nil {
		return blob.Unpacked{}, err
	}
	return blob.UnpackSpan(at, n, packed, u.Len, need, also)
}

// store writes a filled unit's extents to the image, as far as there is room.
func (f *File) store(fill *unitFill) {
	n, at := f.t.unitExtents(fill.unit)
	for k := range n {
		i := at(k)
		if f.has(i) {
			continue
		}
		e := f.t.extent(i)
		b := fill.extentBytes(i, &e)
		if b == nil {
			continue
		}
		if !f.c.budget.Reserve(pages(int64(e.Len))) {
			f.c.metrics.unstored.Inc()
			continue
		}
		err := f.write(i, &e, b)
		if errors.Is(err, unix.ENOSPC) && f.c.budget.Evict(pages(int64(e.Len))) > 0 {
			err = f.write(i, &e, b)
		}
		if err != nil {
			f.c.budget.Add(-pages(int64(e.Len)))
			f.c.metrics.unstored.Inc()
			f.c.log.Warn("extent served without being stored", "digest", f.id, "off", e.Off, "len", e.Len, "err", err)
		}
	}
}

// write puts an extent into the image and marks it. The space is reserved already.
func (f *File) write(i uint32, e *Extent, b []byte) error {
	f.punch.RLock()
	defer f.punch.RUnlock()
	f.mu.Lock()
	gone := f.gone
	f.mu.Unlock()
	if gone {
		return errors.New("image was removed")
	}
	if _, err := f.img.WriteAt(b, e.Off); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hasLocked(i) {
		f.c.budget.Add(-pages(int64(e.Len)))
		return nil
	}
	f.markLocked(i, true)
	f.noteLocked(i)
	if f.used == nil {
		f.used = make([]uint32, f.t.nExtents)
	}
	f.used[i] = f.c.budget.Now()
	if f.nPresent == f.t.nExtents {
		f.c.kickCommit()
	}
	return nil
}
