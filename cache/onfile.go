package cache

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/internal/backoff"
)

const roomPause = 100 * time.Millisecond // before a full disk is tried again

// Fill returns when every byte of [off, off+n) is in the image file itself, for a reader that is
// the kernel. An n of 0 means up to the end. Where there is no room for it, it waits for room up to
// the policy's deadline, and fails with ENOSPC. The caller has pinned the file.
func (f *File) Fill(ctx context.Context, off, n int64) error {
	if n == 0 || n > f.t.imageSize-off {
		n = f.t.imageSize - off
	}
	if off < 0 || n <= 0 || off+n <= f.t.metaSize {
		return nil // metadata is always there
	}
	lo, hi := f.t.overlapping(off, n)
	missing, err := f.use(lo, hi)
	if err != nil {
		return fmt.Errorf("fill image %s at %d+%d: %w", f.id, off, n, err)
	}
	if len(missing) == 0 {
		f.c.metrics.hits.Inc()
		return nil
	}
	fills, err := f.waitForUnits(ctx, missing, off, n)
	for _, fill := range fills {
		if err == nil {
			err = f.storeSurely(ctx, fill)
		}
	}
	if err != nil {
		return fmt.Errorf("fill image %s at %d+%d: %w", f.id, off, n, err)
	}
	return nil
}

// storeSurely returns when a unit that was fetched is in the image file.
func (f *File) storeSurely(ctx context.Context, fill *unitFill) error {
	if f.hasUnit(fill.unit) {
		return nil
	}
	f.mu.Lock()
	deadline := f.policy.Deadline
	f.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("no room on disk within %s: %w", deadline, unix.ENOSPC))
	defer cancel()
	for {
		f.store(fill)
		if f.hasUnit(fill.unit) {
			return nil
		}
		if err := backoff.Sleep(ctx, roomPause); err != nil {
			return err
		}
	}
}

// hasUnit reports whether all extents of a unit are present.
func (f *File) hasUnit(u uint32) bool {
	n, at := f.t.unitExtents(u)
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range n {
		if !f.hasLocked(at(k)) {
			return false
		}
	}
	return true
}

// Pinned returns the bytes on disk that cannot be evicted.
func (c *Cache) Pinned() (n int64) {
	for _, f := range c.snapshotFiles() {
		f.mu.Lock()
		if !f.evictableLocked() {
			n += f.bytes
		}
		f.mu.Unlock()
	}
	return n
}

// Fits reports whether all of the image would fit the budget beside what cannot be evicted.
func (f *File) Fits() bool {
	_, limit := f.c.Usage()
	if limit == 0 {
		return true
	}
	need := int64(0)
	for _, other := range f.c.snapshotFiles() {
		other.mu.Lock()
		if other == f || !other.evictableLocked() {
			need += other.t.dataPages // once it is complete
		}
		other.mu.Unlock()
		need += other.fixed()
	}
	return need <= limit
}
