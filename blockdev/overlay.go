package blockdev

import (
	"context"
	"fmt"
	"sync/atomic"
)

// An Overlay is a Writer over a device that stays as it is. What is written lies in another device, and which
// blocks these are in memory: an overlay lives as long as its process.
type Overlay struct {
	base  Device
	top   Writer
	unit  int64           // bytes of a block
	owned []atomic.Uint64 // one bit a block: its bytes are in top. It is set after them
}

// NewOverlay returns an overlay of a device. top is as large, and nobody else uses it. Its blocks are
// those of a page at least, so that no part of one is ever to be copied up.
func NewOverlay(base Device, top Writer) (*Overlay, error) {
	if base.Size() != top.Size() {
		return nil, fmt.Errorf("overlay: %d bytes over %d", top.Size(), base.Size())
	}
	unit := int64(max(pageSize, base.BlockSize(), top.BlockSize()))
	if base.Size()%unit != 0 {
		return nil, fmt.Errorf("overlay: %d bytes are no multiple of its blocks of %d", base.Size(), unit)
	}
	n := base.Size() / unit
	return &Overlay{base: base, top: top, unit: unit, owned: make([]atomic.Uint64, (n+63)/64)}, nil
}

// Size implements Device.
func (o *Overlay) Size() int64 { return o.base.Size() }

// BlockSize implements Device.
func (o *Overlay) BlockSize() int { return int(o.unit) }

func (o *Overlay) owns(unit int64) bool { return o.owned[unit/64].Load()&(1<<(unit%64)) != 0 }

// run returns where the units from off on end that lie in the same device, end at most, and whether that
// is top.
func (o *Overlay) run(off, end int64) (int64, bool) {
	u := off / o.unit
	owned := o.owns(u)
	for u++; u*o.unit < end && o.owns(u) == owned; u++ {
	}
	return min(u*o.unit, end), owned
}

// ReadAt implements Device.
func (o *Overlay) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off >= o.Size() {
		return 0, nil
	}
	end := min(off+int64(len(p)), o.Size())
	done := 0
	for off < end {
		next, owned := o.run(off, end)
		from := o.base
		if owned {
			from = o.top
		}
		n, err := from.ReadAt(ctx, p[done:done+int(next-off)], off)
		done += n
		if err != nil {
			return done, err
		}
		off = next
	}
	return done, nil
}

// Extents implements Mapper.
func (o *Overlay) Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error {
	if err := Check(o, off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		next, owned := o.run(off, end)
		from := o.base
		if owned {
			from = o.top
		}
		left, more := next-off, true
		if err := Extents(ctx, from, off, left, func(e Extent) bool {
			e.Len = min(e.Len, left)
			left -= e.Len
			more = yield(e)
			return more && left > 0
		}); err != nil || !more {
			return err
		}
		off = next
	}
	return nil
}

// take says that the units of a range, all of them whole, are in top now.
func (o *Overlay) take(off, n int64, err error) error {
	if err != nil {
		return err
	}
	for u := off / o.unit; u*o.unit < off+n; u++ {
		o.owned[u/64].Or(1 << (u % 64))
	}
	return nil
}

// WriteAt implements Writer.
func (o *Overlay) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := Check(o, off, int64(len(p))); err != nil {
		return err
	}
	return o.take(off, int64(len(p)), o.top.WriteAt(ctx, p, off))
}

// WriteSync implements Syncer.
func (o *Overlay) WriteSync(ctx context.Context, p []byte, off int64) error {
	if err := Check(o, off, int64(len(p))); err != nil {
		return err
	}
	return o.take(off, int64(len(p)), WriteSync(ctx, o.top, p, off))
}

// Flush implements Writer.
func (o *Overlay) Flush(ctx context.Context) error { return o.top.Flush(ctx) }

// Trim implements Trimmer: what is trimmed of the base is top's from then on, and reads as zeros.
func (o *Overlay) Trim(ctx context.Context, off, n int64) error {
	return o.WriteZeroes(ctx, off, n, Zeroing{})
}

// WriteZeroes implements Zeroer.
func (o *Overlay) WriteZeroes(ctx context.Context, off, n int64, how Zeroing) error {
	if err := Check(o, off, n); err != nil {
		return err
	}
	return o.take(off, n, WriteZeroes(ctx, o.top, off, n, how))
}
