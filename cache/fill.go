package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/internal/memory"
)

// A unitFill is one unit on its way here. Who waits for it reads its bytes from memory, so that
// neither a full disk nor an eviction in between is seen.
type unitFill struct {
	unit  uint32
	job   *job
	done  chan struct{}
	err   error             // after done
	plain []byte            // after done: the decoded unit, up to its last extent
	parts map[uint32][]byte // after done: extents copied from other files, if plain is nil
}

// A job fetches neighbouring units by one request.
type job struct {
	cancel context.CancelCauseFunc
	ended  chan struct{}
	ticket *ticket
	users  int // who waits for any of its units, a prefetch included; guarded by File.mu
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
func (u *unitFill) extentBytes(i uint32, e *Extent) []byte {
	if u.plain != nil {
		return u.plain[e.Inner : e.Inner+e.Len]
	}
	return u.parts[i]
}

// copyTo copies what the unit has of the image's range [off, off+len(p)).
func (u *unitFill) copyTo(t *table, p []byte, off int64) {
	n, at := t.unitExtents(u.unit)
	for k := range n {
		i := at(k)
		e := t.extent(i)
		b := u.extentBytes(i, &e)
		if b == nil || e.end() <= off || e.Off >= off+int64(len(p)) {
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
func (f *File) demandUnits(ctx context.Context, units []uint32) ([]*unitFill, error) {
	slices.Sort(units)
	units = slices.Compact(units)
	f.mu.Lock()
	if f.gone || f.closing {
		f.mu.Unlock()
		return nil, errors.New("image was removed, or the cache is closed")
	}
	var fills []*unitFill
	var fresh []uint32
	for _, u := range units {
		if fill := f.inflight[u]; fill != nil {
			fill.job.users++
			fill.job.ticket.promote()
			fills = append(fills, fill)
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
		started := f.startLocked(run, demand, 0)
		for _, fill := range started {
			if slices.Contains(fresh[:covered], fill.unit) {
				fill.job.users++
				fills = append(fills, fill)
			}
		}
		started[0].job.users-- // startLocked counts one for itself
		fresh = fresh[covered:]
	}
	f.mu.Unlock()
	return fills, f.await(ctx, fills)
}

// errAbandoned ends a fetch that nobody waits for any more.
var errAbandoned = errors.New("nobody waits any more")

// await waits for fills and then leaves their jobs. A job that its last user gives up is
// cancelled; one whose last user got what it wanted goes on with what it reads ahead.
func (f *File) await(ctx context.Context, fills []*unitFill) (err error) {
	for _, fill := range fills {
		select {
		case <-fill.done:
			err = errors.Join(err, fill.err)
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("wait for unit %d: %w", fill.unit, context.Cause(ctx)))
		}
		if err != nil {
			break
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fill := range fills {
		if fill.job.users--; fill.job.users == 0 && ctx.Err() != nil {
			fill.job.cancel(errAbandoned)
		}
	}
	return err
}

// demandSizeLocked says how many packed bytes to ask for at a miss of unit u.
func (f *File) demandSizeLocked(u uint32) int64 {
	a := &f.ahead
	if a.size > 0 && u+2 >= a.next && u <= a.next+2 {
		a.size = min(a.size*2, maxDemandRun)
	} else {
		a.size = minDemand
	}
	return a.size
}

// wantedLocked reports whether fetching the unit brings something.
func (f *File) wantedLocked(u uint32) bool {
	if f.inflight[u] != nil {
		return false
	}
	n, at := f.t.unitExtents(u)
	for k := range n {
		if !f.hasLocked(at(k)) {
			return true
		}
	}
	return n == 0 && f.plainSum == "" && !f.residue.has(u)
}

// runLocked returns unit u and the wanted units behind it, up to size packed bytes.
func (f *File) runLocked(u uint32, size int64) []uint32 {
	run := []uint32{u}
	total := f.t.unit(u).Len
	for v := u + 1; int(v) < f.t.nUnits && f.wantedLocked(v); v++ {
		total += f.t.unit(v).Len
		if total > size {
			break
		}
		run = append(run, v)
	}
	f.ahead.next = u + uint32(len(run))
	return run
}

// startLocked starts a job for a run of units, none of which is in flight. It may read gaps of some
// packed bytes between them. The job has one user.
func (f *File) startLocked(run []uint32, prio priority, gap int64) []*unitFill {
	ctx, cancel := context.WithCancelCause(context.Background())
	j := &job{cancel: cancel, ended: make(chan struct{}), ticket: f.c.scheds.enter(f.src, prio), users: 1}
	fills := make([]*unitFill, len(run))
	for i, u := range run {
		fills[i] = &unitFill{unit: u, job: j, done: make(chan struct{})}
		f.inflight[u] = fills[i]
	}
	src, policy := f.src, f.policy
	f.c.started.Go(func() {
		defer close(j.ended)
		defer cancel(nil)
		defer j.ticket.release()
		err := f.persist(ctx, policy, j, prio, func(ctx context.Context) error {
			return f.runJob(ctx, src, f.unfinished(fills), prio, gap, j.ticket)
		})
		f.finish(err, fills...)
	})
	return fills
}

// unfinished returns the fills that are still to be made.
func (f *File) unfinished(fills []*unitFill) []*unitFill {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(fills), func(fill *unitFill) bool { return f.inflight[fill.unit] != fill })
}

// finish ends those of the fills that have not ended, all at once: who asks anew after one of them
// failed must not join another that is about to.
func (f *File) finish(err error, fills ...*unitFill) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fill := range fills {
		if f.inflight[fill.unit] != fill {
			continue
		}
		fill.err = err
		delete(f.inflight, fill.unit)
		close(fill.done)
	}
}

// runJob fills what it can from other files and fetches the rest, one request for each stretch
// of neighbours.
func (f *File) runJob(ctx context.Context, src Source, fills []*unitFill, prio priority, gap int64, t *ticket) error {
	fills = slices.DeleteFunc(fills, func(fill *unitFill) bool {
		if !f.fillLocally(fill) {
			return false
		}
		f.finish(nil, fill)
		return true
	})
	if prio == demand && !slices.ContainsFunc(fills, func(fill *unitFill) bool { n, _ := f.t.unitExtents(fill.unit); return n > 0 }) {
		return errAbandoned // what a reader asked for is here; the rest can wait
	}
	if len(fills) == 0 {
		return nil
	}
	switch {
	case f.t.codec == blob.Whole:
		return errors.New("it is one piece and cannot be read by parts; remove the image and pull it again")
	case src == nil:
		return errors.New("no source for this image")
	}
	if err := t.wait(ctx); err != nil {
		return err
	}
	for len(fills) > 0 {
		n := 1
		for n < len(fills) && f.gapBetween(fills[n-1].unit, fills[n].unit) <= gap {
			n++
		}
		if err := f.fetchRun(ctx, src, fills[:n], prio, t); err != nil {
			f.c.metrics.fetchErrors.Inc()
			return err
		}
		fills = fills[n:]
	}
	return nil
}

const maxTries = 3 // at getting a unit's bytes right

// fetchRun fetches units by one request, and with them what lies in small gaps between them. A
// unit with wrong bytes is asked for again, from elsewhere if the source can.
func (f *File) fetchRun(ctx context.Context, src Source, fills []*unitFill, prio priority, t *ticket) error {
	try := 0
	for len(fills) > 0 {
		err := f.fetchStream(ctx, src, fills, prio, t, try)
		before := len(fills)
		fills = f.unfinished(fills)
		if len(fills) < before {
			try = 0
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, blob.ErrBytes) || try+1 >= maxTries {
			return err
		}
		f.c.metrics.wrongBytes.Inc()
		f.c.log.Warn("source sent wrong bytes, asking again", "digest", f.id, "err", err)
		try++
	}
	return nil
}

// maxHeld is up to which size a packed unit is held in memory, so that it is decoded beside the
// next one's arrival. Larger ones are decoded as they come.
const maxHeld = 4 << 20

// fetchStream reads units from one request until the end or the first error, and decodes them on
// all cores.
func (f *File) fetchStream(ctx context.Context, src Source, fills []*unitFill, prio priority, t *ticket, try int) (err error) {
	first, last := f.t.unit(fills[0].unit), f.t.unit(fills[len(fills)-1].unit)
	if began := time.Now(); f.c.observers.watched() {
		defer func() {
			f.c.observers.tell(Event{Kind: Fetched, File: f, Off: first.Off, Len: last.Off + last.Len - first.Off,
				For: prio.String(), Began: began, Took: time.Since(began), Err: err})
		}()
	}
	r, err := src.Open(ctx, first.Off, last.Off+last.Len-first.Off, try)
	if err != nil {
		return err
	}
	defer r.Close()
	in := &countingReader{r: r}
	defer func() {
		f.fetched.Add(in.n)
		f.c.metrics.fetchBytes.Add(float64(in.n))
	}()
	var decoding errgroup.Group
	at := first.Off
	for _, fill := range fills {
		if prio != demand {
			t.yield(ctx)
		}
		u := f.t.unit(fill.unit)
		if _, err = io.CopyN(io.Discard, in, u.Off-at); err != nil {
			break
		}
		at = u.Off + u.Len
		var share *memory.Share
		if share, err = f.memoryFor(ctx, fill.unit); err != nil {
			break
		}
		if u.Len > maxHeld {
			err = f.take(fill, io.LimitReader(in, u.Len), prio)
			share.Release()
			if err != nil {
				break
			}
			continue
		}
		packed := make([]byte, u.Len)
		if _, err = io.ReadFull(in, packed); err != nil {
			share.Release()
			break
		}
		if f.c.decoding.Acquire(ctx, 1) != nil {
			err = context.Cause(ctx)
			share.Release()
			break
		}
		decoding.Go(func() error {
			defer f.c.decoding.Release(1)
			defer share.Release()
			return f.take(fill, bytes.NewReader(packed), prio)
		})
	}
	// A broken request matters less than bytes that are wrong: the former is made again anyway.
	if wrong := decoding.Wait(); wrong != nil {
		return wrong
	}
	return err
}

// take decodes a unit, stores it and lets those who wait for it go on.
func (f *File) take(fill *unitFill, packed io.Reader, prio priority) error {
	if err := f.decodeUnit(fill, packed, nil); err != nil {
		return fmt.Errorf("unit %d at %d: %w", fill.unit, f.t.unit(fill.unit).Off, err)
	}
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return err
	}
	f.account(fill.unit, prio)
	f.store(fill)
	f.finish(nil, fill)
	return nil
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
