package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/internal/backoff"
)

// ReadAt fills p with the image's bytes from off. It fetches what is missing, sharing the fetch
// with others that wait for the same bytes, and returns soon after ctx ends. At the image's end it
// returns fewer bytes and no error.
func (f *Fetcher) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read image %s at %d: %w", f.img.ID(), off, blockdev.ErrRange)
	case off >= f.t.ImageSize:
		return 0, nil
	}
	p = p[:min(int64(len(p)), f.t.ImageSize-off)]
	lo, hi := f.t.Overlapping(off, int64(len(p)))
	missing, err := f.img.ReadPresent(p, off, lo, hi)
	if err != nil {
		return 0, fmt.Errorf("read image %s at %d+%d: %w", f.img.ID(), off, len(p), err)
	}
	if len(missing) == 0 {
		f.pool.metrics.hits.Inc()
		return len(p), nil
	}
	fills, err := f.waitForUnits(ctx, missing, off, int64(len(p)))
	if err != nil {
		return 0, fmt.Errorf("read image %s at %d+%d: %w", f.img.ID(), off, len(p), err)
	}
	for _, u := range fills {
		u.copyTo(f.t, p, off)
	}
	return len(p), nil
}

// waitForUnits makes units present for a reader of [off, off+n) and returns them.
func (f *Fetcher) waitForUnits(ctx context.Context, units []uint32, off, n int64) ([]*fill, error) {
	f.pool.metrics.misses.Inc()
	began := time.Now()
	defer f.pool.waits.enter(ctx, f, off, n)()
	fills, err := f.demandUnits(ctx, units)
	for errors.Is(err, errAbandoned) && ctx.Err() == nil { // we joined it too late
		fills, err = f.demandUnits(ctx, units)
	}
	took := time.Since(began)
	f.pool.metrics.wait.Observe(took.Seconds())
	if f.noteWait(fills, took) && f.pool.observers.watched() {
		f.pool.observers.tell(Event{
			Kind: Waited, ID: f.img.ID(), Off: off, Len: n, PID: blockdev.Caller(ctx), Began: began, Took: took, Err: err,
		})
	}
	return fills, err
}

// noteWait notes that a reader has waited for units, if one of them came over the network, and
// reports whether that is so.
func (f *Fetcher) noteWait(fills []*fill, took time.Duration) bool {
	if !slices.ContainsFunc(fills, func(one *fill) bool { return one.parts == nil }) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waits++
	f.waited += took
	return true
}

const roomPause = 100 * time.Millisecond // before a full disk is tried again

// Fill returns when every byte of [off, off+n) is in the image file itself, for a reader that is
// the kernel. An n of 0 means up to the end. Where there is no room for it, it waits for room up to
// the policy's deadline, and fails with ENOSPC. The caller has pinned the image.
func (f *Fetcher) Fill(ctx context.Context, off, n int64) error {
	if n == 0 || n > f.t.ImageSize-off {
		n = f.t.ImageSize - off
	}
	if off < 0 || n <= 0 || off+n <= f.t.MetaSize {
		return nil // metadata is always there
	}
	lo, hi := f.t.Overlapping(off, n)
	missing, err := f.img.Use(lo, hi)
	if err != nil {
		return fmt.Errorf("fill image %s at %d+%d: %w", f.img.ID(), off, n, err)
	}
	if len(missing) == 0 {
		f.pool.metrics.hits.Inc()
		return nil
	}
	fills, err := f.waitForUnits(ctx, missing, off, n)
	for _, one := range fills {
		if err == nil {
			err = f.storeSurely(ctx, one)
		}
	}
	if err != nil {
		return fmt.Errorf("fill image %s at %d+%d: %w", f.img.ID(), off, n, err)
	}
	return nil
}

// storeSurely returns when a unit that was fetched is in the image file.
func (f *Fetcher) storeSurely(ctx context.Context, one *fill) error {
	if f.img.HasUnit(one.unit) {
		return nil
	}
	f.mu.Lock()
	deadline := f.policy.Deadline
	f.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("no room on disk within %s: %w", deadline, unix.ENOSPC))
	defer cancel()
	for {
		f.store(one)
		if f.img.HasUnit(one.unit) {
			return nil
		}
		if err := backoff.Sleep(ctx, roomPause); err != nil {
			return err
		}
	}
}
