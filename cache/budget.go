package cache

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// budget counts bytes on disk. It is never exceeded: bytes are reserved before they are written.
type budget struct {
	limit int64 // 0 for none

	evicting sync.Mutex // one eviction at a time; taken before all others

	mu   sync.Mutex // guards used
	used int64
}

func (b *budget) add(n int64) {
	b.mu.Lock()
	b.used += n
	b.mu.Unlock()
}

// tryReserve takes n bytes if they are free, and says how many are missing.
func (b *budget) tryReserve(n int64) (missing int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit == 0 || b.used+n <= b.limit {
		b.used += n
		return 0
	}
	return b.used + n - b.limit
}

// Usage returns the bytes on disk and the limit.
func (c *Cache) Usage() (used, limit int64) {
	c.budget.mu.Lock()
	defer c.budget.mu.Unlock()
	return c.budget.used, c.budget.limit
}

// reserve takes n bytes of the budget, evicting if need be. It must not be called while a
// File.punch is held.
func (c *Cache) reserve(n int64) bool {
	for {
		if c.budget.tryReserve(n) == 0 {
			return true
		}
		if freed := c.evictFor(n); freed == 0 {
			return false
		}
	}
}

// evictFor makes room for n bytes, unless another eviction has done so meanwhile, and returns how many
// bytes are free for it or were freed.
func (c *Cache) evictFor(n int64) int64 {
	c.budget.evicting.Lock()
	defer c.budget.evicting.Unlock()
	used, limit := c.Usage()
	if used+n <= limit {
		return n
	}
	return c.evictLocked(used + n - limit)
}

// clock gives the times by which extents are compared: seconds since start.
type clock struct {
	start atomic.Int64
}

func (c *clock) now() uint32 {
	t := time.Now().Unix()
	c.start.CompareAndSwap(0, t-1)
	return uint32(t - c.start.Load())
}

type victim struct {
	f      *File
	extent uint32
	object *object // instead of an extent of f
	used   uint32
	size   int64
}

// evict frees at least n bytes and some more, so that the next caller finds room, taking the
// least recently used extents of files that are not pinned. It returns how many bytes it freed.
func (c *Cache) evict(n int64) (freed int64) {
	c.budget.evicting.Lock()
	defer c.budget.evicting.Unlock()
	return c.evictLocked(n)
}

func (c *Cache) evictLocked(n int64) int64 {
	n += c.budget.limit / 32
	idle := c.dropIdleImports()
	c.budget.add(-idle)
	if idle >= n {
		return idle
	}
	return idle + c.evictExtents(n-idle)
}

func (c *Cache) evictExtents(n int64) (freed int64) {
	var all []victim
	for _, f := range c.snapshotFiles() {
		all = f.appendVictims(all)
	}
	all = c.objects.appendVictims(all)
	slices.SortFunc(all, func(a, b victim) int { return cmp.Compare(a.used, b.used) })
	byFile := map[*File][]uint32{}
	var objects []*object
	for _, v := range all {
		if freed >= n {
			break
		}
		freed += v.size
		if v.object != nil {
			objects = append(objects, v.object)
			continue
		}
		byFile[v.f] = append(byFile[v.f], v.extent)
	}
	freed = 0
	for _, b := range objects {
		freed += c.objects.drop(b)
	}
	for f, extents := range byFile {
		k, err := f.drop(extents)
		if err != nil {
			c.log.Warn("extents not evicted", "digest", f.id, "err", err)
		}
		freed += k
	}
	c.budget.add(-freed)
	c.metrics.evicted.Add(float64(freed))
	return freed
}

// Prune evicts everything that may be evicted and returns how many bytes that freed.
func (c *Cache) Prune() int64 { return c.evict(math.MaxInt64 / 2) }

func (f *File) appendVictims(all []victim) []victim {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.evictableLocked() {
		return all
	}
	for i := range uint32(f.t.nExtents) {
		if f.hasLocked(i) {
			v := victim{f: f, extent: i, size: pages(int64(f.t.extent(i).Len))}
			if f.used != nil {
				v.used = f.used[i]
			}
			all = append(all, v)
		}
	}
	return all
}

// drop takes extents away: recorded as gone first, then punched out of the image. Readers and
// writers of this file wait meanwhile.
func (f *File) drop(extents []uint32) (freed int64, err error) {
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
