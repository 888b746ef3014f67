package cache

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/budget"
)

// Usage returns the bytes on disk and the limit.
func (c *Cache) Usage() (used, limit int64) { return c.budget.Usage() }

// Prune evicts everything that may be evicted and returns how many bytes that freed.
func (c *Cache) Prune() int64 { return c.budget.EvictAll() }

// victims adds what may be evicted.
func (c *Cache) victims(all []budget.Victim) []budget.Victim {
	for _, f := range c.snapshotFiles() {
		all = f.appendVictims(all)
	}
	return c.objects.AppendVictims(all)
}

func (f *File) appendVictims(all []budget.Victim) []budget.Victim {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.evictableLocked() {
		return all
	}
	for i := range uint32(f.t.nExtents) {
		if f.hasLocked(i) {
			v := budget.Victim{Of: f, Part: i, Size: pages(int64(f.t.extent(i).Len))}
			if f.used != nil {
				v.Used = f.used[i]
			}
			all = append(all, v)
		}
	}
	return all
}

// Name is the file's ID.
func (f *File) Name() string { return f.id }

// Drop takes extents away: recorded as gone first, then punched out of the image. Readers and
// writers of this file wait meanwhile.
func (f *File) Drop(extents []uint32) (freed int64, err error) {
	if err := f.commit(); err != nil { // most of the syncing, without holding readers up
		return 0, err
	}
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	f.punch.Lock()
	defer f.punch.Unlock()
	f.mu.Lock()
	runs := f.dirty
	f.dirty = nil
	pinned := !f.evictableLocked()
	f.mu.Unlock()
	if pinned || f.record == nil {
		f.mu.Lock()
		f.dirty = append(runs, f.dirty...)
		f.mu.Unlock()
		return 0, nil
	}
	slices.Sort(extents)
	for _, i := range extents {
		runs = append(runs, run{first: i, count: 1, gone: true})
	}
	if err := f.sync(runs, true); err != nil {
		return 0, fmt.Errorf("sync image: %w", err)
	}
	if err := f.recordRuns(runs); err != nil {
		return 0, err // some of runs may be recorded as gone: that costs a fetch, not a wrong byte
	}
	for _, i := range extents {
		f.mu.Lock()
		e := f.t.extent(i)
		if f.hasLocked(i) {
			freed += pages(int64(e.Len))
			f.markLocked(i, false)
		}
		f.mu.Unlock()
		if err := punchHole(f.img, e.Off, int64(e.Len)); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// punchHole frees the blocks of a range. Extents start on a block unless they follow another of
// the same file, so that rounding outwards would hit a neighbour: the kernel zeros the edges.
func punchHole(f *os.File, off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}
