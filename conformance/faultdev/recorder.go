package faultdev

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/remora-storage/remora/blockdev"
)

// A Recorder is a Writer that remembers every change of the Writer below, so that what a power cut would have
// left can be made afterwards. It keeps all bytes that were written in memory. One that Load returned has no Writer below:
// it can only be cut.
type Recorder struct {
	w    blockdev.Writer
	size int64

	mu      sync.Mutex // guards the fields below
	changes []change
	flushes []int // how many of the changes each flush covers
	whole   span  // is not torn
}

// A span is the bytes from off to end.
type span struct{ off, end int64 }

// A change is one write, trim or zeroing that returned.
type change struct {
	off, n int64
	data   []byte // nil for zeros
	sync   bool   // it was on stable storage when it returned
}

// NewRecorder returns a Recorder over w, whose content is what a cut before the first write leaves.
func NewRecorder(w blockdev.Writer) *Recorder { return &Recorder{w: w, size: w.Size()} }

// KeepWhole says that no cut tears the n bytes at off, which what uses the device relies on.
func (r *Recorder) KeepWhole(off, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.whole = span{off, off + n}
}

// Size implements blockdev.Device.
func (r *Recorder) Size() int64 { return r.size }

// BlockSize implements blockdev.Device.
func (r *Recorder) BlockSize() int { return r.w.BlockSize() }

// ReadAt implements blockdev.Device.
func (r *Recorder) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return r.w.ReadAt(ctx, p, off)
}

// Extents implements blockdev.Mapper.
func (r *Recorder) Extents(ctx context.Context, off, n int64, yield func(blockdev.Extent) bool) error {
	return blockdev.Extents(ctx, r.w, off, n, yield)
}

// record remembers a change that was carried out. Changes that overlap do not run at the same time with
// any sane client, so their order here is that of their effects.
func (r *Recorder) record(err error, c change) error {
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes = append(r.changes, c)
	return nil
}

// WriteAt implements blockdev.Writer.
func (r *Recorder) WriteAt(ctx context.Context, p []byte, off int64) error {
	return r.record(r.w.WriteAt(ctx, p, off), change{off: off, n: int64(len(p)), data: append([]byte(nil), p...)})
}

// WriteSync implements blockdev.Syncer.
func (r *Recorder) WriteSync(ctx context.Context, p []byte, off int64) error {
	c := change{off: off, n: int64(len(p)), data: append([]byte(nil), p...), sync: true}
	return r.record(blockdev.WriteSync(ctx, r.w, p, off), c)
}

// Trim implements blockdev.Trimmer. What is trimmed reads as zeros.
func (r *Recorder) Trim(ctx context.Context, off, n int64) error {
	return r.WriteZeroes(ctx, off, n, blockdev.Zeroing{})
}

// WriteZeroes implements blockdev.Zeroer.
func (r *Recorder) WriteZeroes(ctx context.Context, off, n int64, how blockdev.Zeroing) error {
	return r.record(blockdev.WriteZeroes(ctx, r.w, off, n, how), change{off: off, n: n})
}

// Flush implements blockdev.Writer.
func (r *Recorder) Flush(ctx context.Context) error {
	r.mu.Lock()
	covered := len(r.changes)
	r.mu.Unlock()
	if err := r.w.Flush(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushes = append(r.flushes, covered)
	return nil
}

// Flushes returns how many flushes have returned.
func (r *Recorder) Flushes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.flushes)
}

const sector = 512 // bytes that a disk writes as a whole

// Cut makes dst, which holds what the Recorder began with, into what a power cut could leave that came after the
// given number of flushes and before the next one: all that the flushes cover, and of what came later each
// change or not, in any order where they do not overlap, and some torn.
func (r *Recorder) Cut(ctx context.Context, dst blockdev.Writer, flushes int, rnd *rand.Rand) error {
	r.mu.Lock()
	if flushes > len(r.flushes) {
		r.mu.Unlock()
		return fmt.Errorf("cut after %d flushes of %d", flushes, len(r.flushes))
	}
	stable, end := 0, len(r.changes)
	if flushes > 0 {
		stable = r.flushes[flushes-1]
	}
	if flushes < len(r.flushes) {
		end = max(stable, r.flushes[flushes])
	}
	changes, whole := r.changes[:end:end], r.whole
	r.mu.Unlock()
	for i, c := range changes {
		if i >= stable && !c.sync {
			switch rnd.IntN(3) {
			case 0: // lost
				continue
			case 1: // torn
				if c.n > sector && c.n%sector == 0 {
					k := rnd.Int64N(c.n/sector) * sector
					if at := c.off + k; at > whole.off && at < whole.end {
						k = max(whole.off-c.off, 0)
					}
					if rnd.IntN(2) == 0 {
						c = c.part(0, k)
					} else {
						c = c.part(k, c.n)
					}
				}
			}
		}
		if err := c.apply(ctx, dst); err != nil {
			return err
		}
	}
	return nil
}

// part returns the bytes of a change between two of its offsets.
func (c change) part(from, to int64) change {
	p := change{off: c.off + from, n: to - from}
	if c.data != nil {
		p.data = c.data[from:to]
	}
	return p
}

func (c change) apply(ctx context.Context, dst blockdev.Writer) error {
	if c.data == nil {
		return blockdev.WriteZeroes(ctx, dst, c.off, c.n, blockdev.Zeroing{})
	}
	return dst.WriteAt(ctx, c.data, c.off)
}
