package volume

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/remora-storage/remora/blockdev"
)

// sealLocked closes the active generation if it is due and there is room for another one on its way to the store. While
// there is none the active one grows, and what is written twice goes up once.
func (v *Volume) sealLocked() {
	g := v.active
	if v.spawn == nil || v.err != nil || !v.maySealLocked() || g.cut == g.after {
		return
	}
	due := g.bytes >= segmentTarget || v.flushTo > g.after || v.draining ||
		time.Since(g.oldest) >= v.maxAgeLocked() || v.journalTightLocked()
	if !due {
		return
	}
	v.sealed = append(v.sealed, g)
	v.active = &generation{after: g.cut, cut: g.cut, end: g.end}
	jobs := v.layoutLocked(g)
	v.spawn(func(ctx context.Context) { v.upload(ctx, g, jobs) })
}

// maySealLocked reports whether there is room for another generation on its way.
func (v *Volume) maySealLocked() bool {
	onTheirWay := 0
	for _, g := range v.sealed {
		if !g.uploaded {
			onTheirWay++
		}
	}
	return onTheirWay < maxSealed && len(v.sealed) < maxUncommitted
}

func (v *Volume) maxAgeLocked() time.Duration { return time.Duration(v.head.MaxAge) * time.Second }

// journalTightLocked reports whether the journal is so full that waiting for more to be written together would have
// writers wait.
func (v *Volume) journalTightLocked() bool {
	used, size := v.journal.used()
	return used > size/2 || v.journal.throttled() != ""
}

// segmentJob is one segment that is to be made: runs of adjacent extents, each of which becomes a frame.
type segmentJob struct {
	at   logPosition
	runs [][]extent
	size int64
}

// layoutLocked decides what goes into which segment of a generation, and gives them their numbers.
func (v *Volume) layoutLocked(g *generation) []*segmentJob {
	var jobs []*segmentJob
	var job *segmentJob
	add := func(run []extent) {
		n := int64(0)
		if !run[0].hole {
			n = frameSize(uint32(run[len(run)-1].end() - run[0].lba))
		}
		if job == nil || job.size > 0 && job.size+n > segmentTarget+segmentTarget/8 || len(job.runs) >= 1<<16 {
			job = &segmentJob{at: logPosition{id: v.id, epoch: v.head.Epoch, seq: v.next, previous: v.next - 1, after: g.after, write: g.cut,
				committed: v.head.Segment}}
			v.next++
			jobs = append(jobs, job)
		}
		job.runs = append(job.runs, run)
		job.size += n
	}
	var run []extent
	g.x.all(func(e extent) bool {
		if len(run) > 0 {
			last := run[len(run)-1]
			if !e.hole && !last.hole && last.end() == e.lba && e.end()-run[0].lba <= maxFrame {
				run = append(run, e)
				return true
			}
			add(run)
		}
		run = []extent{e}
		return true
	})
	if len(run) > 0 {
		add(run)
	}
	return jobs
}

// upload makes a generation's segments and stores them.
func (v *Volume) upload(ctx context.Context, g *generation, jobs []*segmentJob) {
	refs, located := make([]SegmentRef, len(jobs)), make([][]extent, len(jobs))
	errs := make([]error, len(jobs))
	var started sync.WaitGroup
	for i, job := range jobs {
		if v.uploads.Acquire(ctx, 1) != nil {
			errs[i] = context.Cause(ctx)
			continue
		}
		started.Go(func() {
			defer v.uploads.Release(1)
			refs[i], located[i], errs[i] = v.uploadSegment(ctx, job)
		})
	}
	started.Wait()
	if err := errors.Join(errs...); err != nil {
		if ctx.Err() == nil {
			v.fail(err)
		}
		return
	}
	v.mu.Lock()
	g.segments, g.uploaded = refs, true
	for _, l := range located {
		g.located = append(g.located, l...)
	}
	for _, s := range v.sealed {
		if !s.uploaded {
			break
		}
		v.journal.passed(s.end.pos)
	}
	v.mu.Unlock()
	v.wake()
}

func (v *Volume) uploadSegment(ctx context.Context, job *segmentJob) (SegmentRef, []extent, error) {
	buf := segmentBuffers.get(segmentCapacity(job.size, len(job.runs)))
	w := newSegmentWriter(job.at, random32(), (*buf)[:0])
	var parts []wanted
	for _, run := range job.runs {
		e := run[0]
		e.seq = job.at.write
		if e.hole {
			w.hole(e)
			continue
		}
		e.blocks = uint32(run[len(run)-1].end() - e.lba)
		p := w.frame(e)
		for _, part := range run {
			n := int(part.blocks) * Block
			parts = append(parts, wanted{part, p[:n]})
			p = p[n:]
		}
	}
	if err := v.journal.readAll(parts); err != nil {
		return SegmentRef{}, nil, err
	}
	p, ref, located := w.finish()
	key := ref.key(v.id)
	if err := v.put(ctx, key, p); err != nil {
		return SegmentRef{}, nil, err // and leave the buffer to whoever may still be sending it
	}
	v.opts.Cache.WriteAt(key, p, 0)
	segmentBuffers.put(buf)
	v.mu.Lock()
	v.stats.Uploaded += int64(len(p))
	v.mu.Unlock()
	return ref, located, nil
}

// put stores an immutable object, however long that takes. Storing it twice does no harm: the bytes are the same.
func (v *Volume) put(ctx context.Context, key string, p []byte) error {
	return v.wait.until(ctx, "write", func() error {
		_, err := v.opts.Store.Put(ctx, key, p)
		return err
	})
}

// segmentPool holds buffers for segments of the usual size.
type segmentPool struct{ sync.Pool }

const (
	usualSegment = segmentTarget + segmentTarget/8 + 1<<20
	smallSegment = 1 << 20 // what somebody waits for
)

var segmentBuffers = segmentPool{sync.Pool{New: func() any {
	p := blockdev.AlignedBuffer(usualSegment)
	return &p
}}}

// get returns a buffer of at least n bytes.
func (s *segmentPool) get(n int) *[]byte {
	if n > usualSegment || n <= smallSegment {
		p := blockdev.AlignedBuffer(n)
		return &p
	}
	return s.Get().(*[]byte)
}

func (s *segmentPool) put(p *[]byte) {
	if len(*p) == usualSegment {
		s.Put(p)
	}
}
