package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/remora-storage/remora/cache/image"
)

// A fill is one unit on its way here. Those that wait for it read its bytes from memory, so that
// neither a full disk nor an eviction in between is seen.
type fill struct {
	unit  uint32
	job   *job
	done  chan struct{}
	err   error             // after done
	plain []byte            // after done: the decoded unit, up to its last extent
	parts map[uint32][]byte // after done: extents copied from other images, if plain is nil
}

// readahead lets sequential readers ask for more each time.
type readahead struct {
	next uint32 // the unit behind the last run
	size int64  // packed bytes of the last run
}

const (
	minDemand    = 256 << 10 // packed bytes: a request costs a round trip, which moves more than this
	maxDemandRun = 8 << 20
)

// extentBytes returns the bytes of an extent of the filled unit.
func (u *fill) extentBytes(i uint32, e *image.Extent) []byte {
	if u.plain != nil {
		return u.plain[e.Inner : e.Inner+e.Len]
	}
	return u.parts[i]
}

// copyTo copies what the unit has of the image's range [off, off+len(p)).
func (u *fill) copyTo(t *image.Table, p []byte, off int64) {
	n, at := t.UnitExtents(u.unit)
	for k := range n {
		i := at(k)
		e := t.Extent(i)
		b := u.extentBytes(i, &e)
		if b == nil || e.End() <= off || e.Off >= off+int64(len(p)) {
			continue
		}
		if e.Off < off {
			copy(p, b[off-e.Off:])
		} else {
			copy(p[e.Off-off:], b)
		}
	}
}

// demandUnits makes units present for a reader and returns them.
func (f *Fetcher) demandUnits(ctx context.Context, units []uint32) ([]*fill, error) {
	slices.Sort(units)
	units = slices.Compact(units)
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return nil, errors.New("image was removed, or the cache is closed")
	}
	var fills []*fill
	var fresh []uint32
	for _, u := range units {
		if one := f.inflight[u]; one != nil {
			one.job.users++
			one.job.ticket.promote()
			fills = append(fills, one)
		} else {
			fresh = append(fresh, u)
		}
	}
	for len(fresh) > 0 {
		want := f.demandSizeLocked(fresh[0])
		run := f.runLocked(fresh[0], want)
		covered := 0
		for covered < len(fresh) && fresh[covered] < run[0]+uint32(len(run)) {
			covered++
		}
		started := f.startLocked(ctx, run, demand, 0)
		for _, one := range started {
			if slices.Contains(fresh[:covered], one.unit) {
				one.job.users++
				fills = append(fills, one)
			}
		}
		started[0].job.users-- // startLocked counts one for itself
		fresh = fresh[covered:]
	}
	f.mu.Unlock()
	return fills, f.await(ctx, fills)
}

// errAbandoned ends a fetch that nobody waits for any longer.
var errAbandoned = errors.New("nobody waits")

// await waits for fills and then leaves their jobs. A job that its last user gives up is
// cancelled; one whose last user got what it wanted goes on with what it reads ahead.
func (f *Fetcher) await(ctx context.Context, fills []*fill) (err error) {
	for _, one := range fills {
		select {
		case <-one.done:
			err = errors.Join(err, one.err)
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("wait for unit %d: %w", one.unit, context.Cause(ctx)))
		}
		if err != nil {
			break
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range fills {
		if one.job.users--; one.job.users == 0 && ctx.Err() != nil {
			one.job.cancel(errAbandoned)
		}
	}
	return err
}

// demandSizeLocked says how many packed bytes to ask for at a miss of unit u.
func (f *Fetcher) demandSizeLocked(u uint32) int64 {
	a := &f.ahead
	if a.size > 0 && u+2 >= a.next && u <= a.next+2 {
		a.size = min(a.size*2, maxDemandRun)
	} else {
		a.size = minDemand
	}
	return a.size
}

// wantedLocked reports whether fetching the unit brings something.
func (f *Fetcher) wantedLocked(u uint32) bool { return f.inflight[u] == nil && f.img.Wants(u) }

// runLocked returns unit u and the wanted units behind it, up to size packed bytes.
func (f *Fetcher) runLocked(u uint32, size int64) []uint32 {
	run := []uint32{u}
	total := f.t.Unit(u).Len
	for v := u + 1; int(v) < f.t.NUnits && f.wantedLocked(v); v++ {
		total += f.t.Unit(v).Len
		if total > size {
			break
		}
		run = append(run, v)
	}
	f.ahead.next = u + uint32(len(run))
	return run
}

// startLocked starts a job for a run of units, none of which is in flight. It may read gaps of some
// packed bytes between them. The job has one user, and outlives ctx, which says for whom it is.
func (f *Fetcher) startLocked(ctx context.Context, run []uint32, prio priority, gap int64) []*fill {
	src := forAsker(ctx, f.src)
	ctx, cancel := context.WithCancelCause(AskedBy(context.Background(), ctx.Value(asker{})))
	j := &job{
		f: f, src: src, prio: prio, gap: gap, cancel: cancel, ended: make(chan struct{}), ticket: f.pool.scheds.enter(src, prio), users: 1,
	}
	fills := make([]*fill, len(run))
	for i, u := range run {
		fills[i] = &fill{unit: u, job: j, done: make(chan struct{})}
		f.inflight[u] = fills[i]
	}
	policy := f.policy
	f.pool.started.Go(func() {
		defer close(j.ended)
		defer cancel(nil)
		defer j.ticket.release()
		err := j.persist(ctx, policy, func(ctx context.Context) error { return j.run(ctx, f.unfinished(fills)) })
		if cause := context.Cause(ctx); err != nil && errors.Is(cause, errAbandoned) && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%w)", cause, err) // a source may say no more than that the context has ended
		}
		f.finish(err, fills...)
	})
	return fills
}
