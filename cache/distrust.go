package cache

import (
	"context"
	"crypto/sha256"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/internal/wire"
)

// sync puts the image's data on stable storage. Where that fails, the kernel may have dropped what it could not write and
// taken the pages for clean: a second try would succeed, and prove nothing. So what was written since the last commit is
// not believed: an extent that still has its digest is written again, and another one is absent, to be fetched again. The
// error stands, and the next commit syncs what was written again. The caller holds commitMu, and punch exclusively if
// held says so; runs are what it was about to record.
func (f *File) sync(runs []run, held bool) error {
	err := f.c.fdatasync(int(f.img.Fd()))
	if err == nil {
		return nil
	}
	if !held {
		f.punch.Lock() // whoever has written before the failure has noted it by now
		defer f.punch.Unlock()
	}
	f.mu.Lock()
	runs = append(runs, f.dirty...)
	f.dirty = nil
	f.mu.Unlock()
	again, lost := 0, 0
	for _, r := range runs {
		if r.gone {
			continue // nothing is recorded as gone, so it is still here
		}
		for i := r.first; i < r.first+r.count; i++ {
			if f.rewrite(i) {
				again++
			} else {
				lost++
			}
		}
	}
	if f.record == nil && !f.rewriteMeta() {
		f.unsafe = true
	}
	f.c.log.Error("disk does not take the cache's data: what was written is written or fetched again", "digest", f.id, "err", err,
		"written_again", again, "to_fetch", lost)
	if lost > 0 && f.pinned() {
		// The kernel reads this file itself, and asks for nothing.
		f.c.started.Go(func() {
			if err := f.PrefetchAll(context.Background()); err != nil {
				f.c.log.Error("bytes that the disk lost are still missing", "digest", f.id, "err", err)
			}
		})
	}
	return err
}

// rewrite writes an extent again if it has its digest, and otherwise takes it away.
func (f *File) rewrite(i uint32) bool {
	f.mu.Lock()
	here := f.hasLocked(i)
	f.mu.Unlock()
	if !here {
		return false
	}
	e := f.t.extent(i)
	p := make([]byte, e.Len)
	if _, err := f.img.ReadAt(p, e.Off); err == nil && sha256.Sum256(p) == e.Digest {
		if _, err := f.img.WriteAt(p, e.Off); err == nil {
			f.mu.Lock()
			f.noteLocked(i)
			f.mu.Unlock()
			return true
		}
	}
	f.mu.Lock()
	f.markLocked(i, false)
	f.mu.Unlock()
	_ = punchHole(f.img, e.Off, int64(e.Len)) // else its space is counted as free too early
	f.c.budget.Add(-pages(int64(e.Len)))
	return false
}

// rewriteMeta writes the metadata again, if it is what was written at first.
func (f *File) rewriteMeta() bool {
	p := make([]byte, f.t.metaSize)
	if _, err := f.img.ReadAt(p, 0); err != nil || wire.Sum(p) != f.metaSum {
		return false
	}
	_, err := f.img.WriteAt(p, 0)
	return err == nil
}

func (f *File) pinned() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pins > 0
}

// fdatasync is that of the system, unless a test has another one.
func (c *Cache) fdatasync(fd int) error {
	if c.opts.fdatasync != nil {
		return c.opts.fdatasync(fd)
	}
	return unix.Fdatasync(fd)
}
