package volume

import (
	"context"
	"errors"
	"time"

	"github.com/remora-storage/remora/blockdev"
)

// WriteAt implements blockdev.Writer. It returns when the journal's disk has p.
func (v *Volume) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := v.change(ctx, p, off, int64(len(p))); err != nil {
		return err
	}
	if v.class == Writethrough {
		return v.Flush(ctx)
	}
	return nil
}

// WriteSync implements blockdev.Syncer.
func (v *Volume) WriteSync(ctx context.Context, p []byte, off int64) error {
	if err := v.change(ctx, p, off, int64(len(p))); err != nil {
		return err
	}
	return v.Flush(ctx)
}

// Trim implements blockdev.Trimmer. What is trimmed reads as zeros.
func (v *Volume) Trim(ctx context.Context, off, n int64) error {
	return v.WriteZeroes(ctx, off, n, blockdev.Zeroing{})
}

// WriteZeroes implements blockdev.Zeroer. Storage is never kept for zeros: the store gives what is written.
func (v *Volume) WriteZeroes(ctx context.Context, off, n int64, _ blockdev.Zeroing) error {
	if err := v.change(ctx, nil, off, n); err != nil {
		return err
	}
	if v.class == Writethrough {
		return v.Flush(ctx)
	}
	return nil
}

const maxHole = 1 << 30 // blocks of one entry

// change journals a write, or a hole if p is nil.
func (v *Volume) change(ctx context.Context, p []byte, off, n int64) error {
	if err := blockdev.Check(v, off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if v.readOnly {
		return ErrReadOnly
	}
	if err := v.leased(ctx); err != nil {
		return err
	}
	if err := v.failed(); err != nil {
		return err
	}
	lba, end := uint64(off/Block), uint64((off+n)/Block)
	for lba < end {
		r := &appendReq{}
		for lba < end && len(r.entries) < maxRecord/Block/maxFrame {
			e := entry{lba: lba}
			if p == nil {
				e.hole, e.blocks = true, uint32(min(end-lba, maxHole))
			} else {
				// Frames of one alignment: what is written over and over lies in the same ones.
				e.blocks = uint32(min(end-lba, maxFrame-lba%maxFrame))
				e.data, p = p[:int(e.blocks)*Block], p[int(e.blocks)*Block:]
			}
			lba += uint64(e.blocks)
			r.entries = append(r.entries, e)
		}
		if err := v.journal.append(ctx, r); err != nil {
			return v.journalError(err)
		}
	}
	v.bytesWritten.Add(n)
	return v.leased(ctx)
}

// journalError ends the volume if its journal has failed.
func (v *Volume) journalError(err error) error {
	if jerr := v.journal.failed(); jerr != nil {
		if first := v.failed(); first != nil {
			return first
		}
		v.fail(jerr)
	}
	return err
}

// leased waits while it is not certain that this node owns the volume, and others may use it. Requests ask when they begin and before
// they are answered.
func (v *Volume) leased(ctx context.Context) error {
	life, certain, err := v.lease.Certain()
	for err == nil && (!certain || life != *v.life.named.Load()) {
		wait := v.lease.Wait
		if certain {
			wait = v.life.reassert
		}
		var own bool
		if own, err = v.opts.Quiet.Or(ctx, wait); own {
			return nil
		}
		if err == nil {
			life, certain, err = v.lease.Certain()
		}
	}
	if errors.Is(err, ErrFenced) {
		v.fail(err)
	}
	return err
}

// applyWritten makes a record's writes visible. The journal calls it in the order of the log.
func (v *Volume) applyWritten(first uint64, entries []entry, end cursor) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fresh := v.active.oldest.IsZero()
	v.applyLocked(first, entries)
	v.active.end = end
	if fresh {
		v.wake() // its age is to be watched
	}
	v.sealLocked()
}

func (v *Volume) applyLocked(first uint64, entries []entry) {
	if len(entries) > 0 && v.active.oldest.IsZero() {
		v.active.oldest = time.Now()
	}
	for i, e := range entries {
		x := extent{lba: e.lba, blocks: e.blocks, hole: e.hole, seq: first + uint64(i)}
		if !e.hole {
			x.place = place{off: e.pos, whole: e.blocks, crc: e.sum}
			v.active.bytes += int64(e.blocks) * Block
		}
		v.active.x.set(x)
		v.written = x.seq
	}
	v.active.cut = v.written
}

// Flush implements blockdev.Writer.
func (v *Volume) Flush(ctx context.Context) error {
	if err := v.failed(); err != nil {
		return err
	}
	v.flushes.Add(1)
	if v.class != Local {
		if own, err := v.opts.Quiet.Or(ctx, v.Commit); err != nil || !own {
			return err
		}
	}
	if err := v.journal.sync(); err != nil {
		return v.journalError(err)
	}
	return v.leased(ctx)
}

// Commit returns when the store has every write that was acknowledged before.
func (v *Volume) Commit(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	upTo := v.written
	v.flushTo = max(v.flushTo, upTo)
	v.sealLocked()
	for v.committed < upTo {
		if v.err != nil {
			return v.err
		}
		progress := v.progress
		v.mu.Unlock()
		select {
		case <-progress:
		case <-ctx.Done():
		}
		v.mu.Lock()
		if ctx.Err() != nil && v.committed < upTo {
			return context.Cause(ctx)
		}
	}
	return nil
}
