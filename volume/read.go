package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/remote/store"
)

// span is a range of blocks.
type span struct{ lo, hi uint64 }

// ReadAt implements blockdev.Device.
func (v *Volume) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off >= v.Size() {
		return 0, nil
	}
	n := min(int64(len(p)), v.Size()-off)
	if err := blockdev.Check(v, off, n); err != nil {
		return 0, err
	}
	if err := v.leased(ctx); err != nil {
		return 0, err
	}
	var err error
	for try := range 2 {
		// A segment that is not there any more has been replaced as a whole: what this read knew is old.
		if err = v.read(ctx, p[:n], off); !errors.Is(err, store.ErrNoObject) {
			break
		}
		if try == 1 {
			err = fmt.Errorf("read %d bytes at %d: %w: %w", n, off, ErrCorrupt, err)
		}
	}
	if err != nil {
		return 0, err
	}
	v.bytesRead.Add(n)
	return int(n), v.leased(ctx)
}

// read fills p, newest layers first.
func (v *Volume) read(ctx context.Context, p []byte, off int64) error {
	lba := uint64(off / Block)
	part := func(e extent) []byte { return p[(e.lba-lba)*Block:][:int(e.blocks)*Block] }
	var stored []extent
	v.reuse.RLock()
	found, gaps, root, err := v.recent(span{lba, lba + uint64(len(p)/Block)})
	for _, e := range found {
		switch {
		case err != nil:
		case e.hole:
			clear(part(e))
		case e.place.seg == 0:
			err = v.journal.read(e, part(e))
		default:
			stored = append(stored, e)
		}
	}
	v.reuse.RUnlock()
	if err != nil {
		if errors.Is(err, ErrCorrupt) {
			v.fail(err) // it was acknowledged, and is nowhere else
		}
		return err
	}
	for _, g := range gaps {
		clear(p[(g.lo-lba)*Block : (g.hi-lba)*Block])
		if err := v.nodes.lookup(ctx, root, g.lo, g.hi, func(e extent) bool {
			stored = append(stored, e)
			return true
		}); err != nil {
			return err
		}
	}
	return v.fetch(ctx, stored, part)
}

// recent returns what is known without the map, and what must be looked up in it.
func (v *Volume) recent(s span) (found []extent, gaps []span, root *NodeRef, err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.err != nil {
		return nil, nil, nil, v.err
	}
	gaps = []span{s}
	look := func(x *extents) {
		if x == nil || x.len() == 0 || len(gaps) == 0 {
			return
		}
		var rest []span
		for _, g := range gaps {
			at := g.lo
			x.overlapping(g.lo, g.hi, func(e extent) bool {
				if e.lba > at {
					rest = append(rest, span{at, e.lba})
				}
				found = append(found, e)
				at = e.end()
				return true
			})
			if at < g.hi {
				rest = append(rest, span{at, g.hi})
			}
		}
		gaps = rest
	}
	look(&v.active.x)
	for i := len(v.sealed) - 1; i >= 0; i-- {
		look(&v.sealed[i].x)
	}
	look(v.tail)
	look(v.frozen)
	return found, gaps, v.root.Extents, nil
}

// Extents implements blockdev.Mapper.
func (v *Volume) Extents(ctx context.Context, off, n int64, yield func(blockdev.Extent) bool) error {
	if err := blockdev.Check(v, off, n); err != nil {
		return err
	}
	const step = 1 << 16 // blocks that are looked up at a time
	end := uint64((off + n) / Block)
	var last blockdev.Extent
	add := func(blocks uint64, hole bool) bool {
		x := blockdev.Extent{Len: int64(blocks) * Block, Hole: hole, Zero: hole}
		if last.Len > 0 && last.Hole != hole {
			if !yield(last) {
				return false
			}
			last = blockdev.Extent{}
		}
		x.Len += last.Len
		last = x
		return true
	}
	for lo := uint64(off / Block); lo < end; lo += step {
		hi := min(lo+step, end)
		data, err := v.mapped(ctx, span{lo, hi})
		if err != nil {
			return err
		}
		at := lo
		var stop bool
		data.all(func(e extent) bool {
			if e.hole {
				return true
			}
			stop = e.lba > at && !add(e.lba-at, true) || !add(uint64(e.blocks), false)
			at = e.end()
			return !stop
		})
		if stop || at < hi && !add(hi-at, true) {
			return nil
		}
	}
	if last.Len > 0 {
		yield(last)
	}
	return nil
}

// mapped returns all extents of a range.
func (v *Volume) mapped(ctx context.Context, s span) (*extents, error) {
	found, gaps, root, err := v.recent(s)
	if err != nil {
		return nil, err
	}
	x := &extents{}
	for _, g := range gaps {
		if err := v.nodes.lookup(ctx, root, g.lo, g.hi, func(e extent) bool {
			x.set(e)
			return true
		}); err != nil {
			return nil, err
		}
	}
	for _, e := range found {
		x.set(e)
	}
	return x, nil
}
