package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache/blob"
)

const (
	tableFile    = "extents"
	imageFile    = "image"
	presenceFile = "present"
	residueFile  = "residue"
	plainFile    = "verified" // the digest of the plain blob, once it is known
	keptFile     = "kept"
)

// A File is one image. It is a blockdev.Device: read-only, every byte of it readable, what is
// missing fetched on the way.
type File struct {
	c   *Cache
	id  string
	dir string
	img *os.File
	t   *table

	points *points // where units begin; nil but for blob.Spans

	fetched atomic.Int64 // bytes taken from the source since the daemon started

	// punch is held shared by who reads or writes extents of the image file, and exclusively
	// by who takes extents away, so that no reader sees a hole instead of data.
	punch sync.RWMutex

	verifying *semaphore.Weighted // held while the file is verified

	commitMu sync.Mutex // one commit at a time; taken before mu
	record   *presence  // guarded by commitMu; nil until the first commit
	metaSum  uint32     // of the metadata, as it was written; for the first commit
	unsafe   bool       // guarded by commitMu: its metadata may be lost, so that it is never recorded

	mu         sync.Mutex // guards the fields below
	src        Source
	policy     Policy
	trouble    error    // why the source does not answer; nil while it does
	present    []uint64 // a bit an extent
	used       []uint32 // when an extent was last used, in ticks; nil until one is
	nPresent   int
	bytes      int64 // on disk, of present extents
	dirty      []run // filled, not recorded
	inflight   map[uint32]*unitFill
	pins       int
	gone       bool // nothing begins any more
	closing    bool // no fetch begins any more
	closed     bool
	plainSum   digest.Digest // of the plain blob; "" until it is known
	kept       bool          // an operator wants it never evicted
	ahead      readahead
	alike      map[string]int // how like other files, by name, this one is; see likeness
	acct       account
	recordings []*Recording

	residue residue
}

var _ blockdev.Device = (*File)(nil)

// newFile returns a file of parts that lie in dir. The image file stays the caller's if that fails.
func newFile(c *Cache, id, dir string, img *os.File, t *table, src Source) (*File, error) {
	var pts *points
	if t.codec == blob.Spans {
		var err error
		if pts, err = openPoints(dir, t); err != nil {
			return nil, err
		}
	}
	return &File{
		c: c, id: id, dir: dir, img: img, t: t, points: pts, src: src, policy: c.opts.Policy,
		present: make([]uint64, (t.nExtents+63)/64), inflight: map[uint32]*unitFill{},
		verifying: semaphore.NewWeighted(1),
	}, nil
}

// ID returns the file's name in the cache.
func (f *File) ID() string { return f.id }

// Path returns where the image lies. While the file is complete and pinned, the kernel may read
// it without us.
func (f *File) Path() string { return filepath.Join(f.dir, imageFile) }

// MetaSize returns the bytes at the image's start that are always present.
func (f *File) MetaSize() int64 { return f.t.metaSize }

// Imported reports whether the image's data came whole, by an Import.
func (f *File) Imported() bool {
	// Tables of earlier versions tell it by where the data is alone.
	return f.t.imported || f.t.nExtents > 0 && f.t.extentOff(0) >= DataStart
}

// Size returns the image's size in bytes.
func (f *File) Size() int64 { return f.t.imageSize }

// BlockSize returns 1: any range can be read.
func (f *File) BlockSize() int { return 1 }

// Stats are a file's numbers, all in bytes.
type Stats struct {
	Data    int64 // of all extents
	Present int64 // of the extents that are here
	Fetched int64 // taken from the source since the daemon started
	Disk    int64 // on disk now, everything of this file

	// Packed bytes of units since the daemon started: those that readers asked for, those that were
	// fetched before anybody waited, those of the latter that readers asked for, and those that were
	// fetched because a reader waited. What the kernel reads without asking is not seen.
	Read, Prefetched, PrefetchUsed, Demanded int64

	Waits  int64         // reads that waited for the network since the daemon started
	Waited time.Duration // how long, all together
}

// Stats returns the file's numbers.
func (f *File) Stats() Stats {
	s := Stats{Fetched: f.fetched.Load()}
	for i := range f.t.nExtents {
		n := int64(f.t.extent(uint32(i)).Len)
		s.Data += n
		if f.has(uint32(i)) {
			s.Present += n
		}
	}
	s.Disk = f.allocated()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acct.addLocked(f.t, &s)
	return s
}

// Disk returns the bytes on disk now, in constant time.
func (f *File) Disk() int64 { return f.allocated() }

// Complete reports whether every extent is present.
func (f *File) Complete() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nPresent == f.t.nExtents
}

// SetSource replaces where missing extents come from.
func (f *File) SetSource(src Source) {
	f.mu.Lock()
	f.src = src
	f.mu.Unlock()
}

// SetPolicy says what becomes of reads while the source does not answer.
func (f *File) SetPolicy(p Policy) {
	f.mu.Lock()
	f.policy = p.withDefaults()
	f.mu.Unlock()
}

// Image returns the open image file. It stays the cache's.
func (f *File) Image() *os.File { return f.img }

// Commit records everything that was filled so far and returns when that is on stable storage.
func (f *File) Commit() error { return f.commit() }

// AddFetched counts bytes that the caller took from the source for this file.
func (f *File) AddFetched(n int64) { f.fetched.Add(n) }

// PinIfComplete keeps all extents where they are until Unpin, if all are here. The kernel may
// read a pinned file directly.
func (f *File) PinIfComplete() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nPresent != f.t.nExtents || f.gone {
		return false
	}
	f.pins++
	return true
}

// Pin keeps all extents that are here, or come, until Unpin. The kernel may read a pinned file
// directly, if somebody fills it before.
func (f *File) Pin() {
	f.mu.Lock()
	f.pins++
	f.mu.Unlock()
}

// Unpin undoes one Pin or PinIfComplete.
func (f *File) Unpin() {
	f.mu.Lock()
	f.pins--
	f.mu.Unlock()
}

// Keep has the file never evicted, in this life and later ones, or as others are.
func (f *File) Keep(keep bool) error {
	mark := filepath.Join(f.dir, keptFile)
	var err error
	if keep {
		err = os.WriteFile(mark, nil, 0o600)
	} else if err = os.Remove(mark); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("keep image %s: %w", f.id, err)
	}
	f.mu.Lock()
	f.kept = keep
	f.mu.Unlock()
	return nil
}

// Kept reports whether an operator wants the file never evicted, and whether it may be now.
func (f *File) Kept() (kept, evictable bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kept, f.evictableLocked()
}

func (f *File) evictableLocked() bool {
	return f.pins == 0 && !f.kept && !f.gone && f.t.codec != blob.Whole
}

func pages(n int64) int64 { return (n + 4095) &^ 4095 }

func (f *File) allocated() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fixed() + f.bytes
}

// fixed is what the file takes on disk whatever extents are here.
func (f *File) fixed() int64 {
	n := pages(f.t.metaSize) + pages(int64(len(f.t.data))) + f.residue.reserved.Load()
	if f.points != nil {
		n += pages(f.points.size)
	}
	return n
}

func (f *File) has(i uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hasLocked(i)
}

func (f *File) hasLocked(i uint32) bool { return f.present[i/64]&(1<<(i%64)) != 0 }

// markLocked sets or clears an extent's bit and keeps the counts.
func (f *File) markLocked(i uint32, here bool) {
	if f.hasLocked(i) == here {
		return
	}
	f.present[i/64] ^= 1 << (i % 64)
	n := pages(int64(f.t.extent(i).Len))
	if here {
		f.nPresent++
		f.bytes += n
	} else {
		f.nPresent--
		f.bytes -= n
	}
}

func (f *File) applyRun(r run) {
	for i := r.first; i < r.first+r.count; i++ {
		f.markLocked(i, !r.gone)
	}
}

// noteLocked adds an extent to what the next commit records.
func (f *File) noteLocked(i uint32) {
	if k := len(f.dirty); k > 0 && f.dirty[k-1].first+f.dirty[k-1].count == i {
		f.dirty[k-1].count++
		return
	}
	f.dirty = append(f.dirty, run{first: i, count: 1})
}

// ReadAt fills p with the image's bytes from off. It fetches what is missing, sharing the fetch
// with whoever waits for the same bytes, and returns soon after ctx ends. At the image's end it
// returns fewer bytes and no error.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read image %s at %d: %w", f.id, off, blockdev.ErrRange)
	case off >= f.t.imageSize:
		return 0, nil
	}
	p = p[:min(int64(len(p)), f.t.imageSize-off)]
	lo, hi := f.t.overlapping(off, int64(len(p)))
	missing, err := f.readPresent(p, off, lo, hi)
	if err != nil {
		return 0, fmt.Errorf("read image %s at %d+%d: %w", f.id, off, len(p), err)
	}
	if len(missing) == 0 {
		f.c.metrics.hits.Inc()
		return len(p), nil
	}
	fills, err := f.waitForUnits(ctx, missing, off, int64(len(p)))
	if err != nil {
		return 0, fmt.Errorf("read image %s at %d+%d: %w", f.id, off, len(p), err)
	}
	for _, u := range fills {
		u.copyTo(f.t, p, off)
	}
	return len(p), nil
}

// waitForUnits makes units present for a reader of [off, off+n) and returns them.
func (f *File) waitForUnits(ctx context.Context, units []uint32, off, n int64) ([]*unitFill, error) {
	f.c.metrics.misses.Inc()
	began := time.Now()
	defer f.c.waits.enter(ctx, f, off, n)()
	fills, err := f.demandUnits(ctx, units)
	for errors.Is(err, errAbandoned) && ctx.Err() == nil { // we joined it too late
		fills, err = f.demandUnits(ctx, units)
	}
	took := time.Since(began)
	f.c.metrics.wait.Observe(took.Seconds())
	if f.noteWait(fills, took) && f.c.observers.watched() {
		f.c.observers.tell(Event{
			Kind: Waited, File: f, Off: off, Len: n, PID: blockdev.Caller(ctx), Began: began, Took: took, Err: err,
		})
	}
	return fills, err
}

// readPresent reads what is here of extents [lo, hi) and everything between them, and returns
// the units of those that are not.
func (f *File) readPresent(p []byte, off int64, lo, hi int) (missing []uint32, err error) {
	f.punch.RLock()
	defer f.punch.RUnlock()
	if missing, err = f.use(lo, hi); err != nil {
		return nil, err
	}
	_, err = f.img.ReadAt(p, off)
	return missing, err
}

// use notes that somebody reads extents [lo, hi) and returns the units of those that are not here.
func (f *File) use(lo, hi int) (missing []uint32, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return nil, errors.New("image was removed")
	}
	now := f.c.budget.Now()
	if f.used == nil && hi > lo {
		f.used = make([]uint32, f.t.nExtents)
	}
	for i := lo; i < hi; i++ {
		f.used[i] = now
		u := f.t.extent(uint32(i)).Unit
		f.askLocked(u)
		for _, r := range f.recordings {
			r.noteLocked(uint32(i))
		}
		if f.hasLocked(uint32(i)) {
			continue
		}
		if k := len(missing); k == 0 || missing[k-1] != u {
			missing = append(missing, u)
		}
	}
	return missing, nil
}

// closeFiles closes without recording. Nothing is written behind a close, so errors say nothing.
func (f *File) closeFiles() {
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	f.punch.Lock()
	defer f.punch.Unlock()
	f.mu.Lock()
	already := f.closed
	f.gone, f.closed = true, true
	f.mu.Unlock()
	if already {
		return
	}
	f.img.Close()
	if f.record != nil {
		f.record.close()
	}
	if f.points != nil {
		f.points.f.Close()
	}
	f.residue.close()
}

// jobs returns the fetches of the file that are under way.
func (f *File) jobs() map[*job]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	jobs := map[*job]bool{}
	for _, u := range f.inflight {
		jobs[u.job] = true
	}
	return jobs
}

// cancelFills ends all fetches of the file and waits for them.
func (f *File) cancelFills(cause error) {
	jobs := f.jobs()
	for j := range jobs {
		j.cancel(cause)
	}
	for j := range jobs {
		<-j.ended
	}
}

// awaitJobs waits for all fetches of the file.
func (f *File) awaitJobs() {
	for j := range f.jobs() {
		<-j.ended
	}
}

// discard closes the file for good and returns how many bytes it had on disk.
func (f *File) discard() int64 {
	f.mu.Lock()
	f.gone = true // no fetch begins any more
	f.dirty = nil
	f.mu.Unlock()
	f.cancelFills(errors.New("image was removed"))
	f.closeFiles()
	return f.allocated()
}
