package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remora-storage/remora/cache/blob"
)

// A job fetches neighbouring units by one request.
type job struct {
	f      *Fetcher
	src    Source
	prio   priority
	gap    int64 // packed bytes between units that it may read and drop
	cancel context.CancelCauseFunc
	ended  chan struct{}
	ticket *ticket
	users  int // how many wait for any of its units, a prefetch included; guarded by Fetcher.mu
}

// unfinished returns the fills that are still to be made.
func (f *Fetcher) unfinished(fills []*fill) []*fill {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(fills), func(one *fill) bool { return f.inflight[one.unit] != one })
}

// finish ends those of the fills that have not ended, all under one lock: a caller that asks anew after one of them
// failed must not join another that is about to.
func (f *Fetcher) finish(err error, fills ...*fill) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range fills {
		if f.inflight[one.unit] != one {
			continue
		}
		one.err = err
		delete(f.inflight, one.unit)
		close(one.done)
	}
}

// run fills what it can from other images and fetches the rest, one request for each stretch
// of neighbours.
func (j *job) run(ctx context.Context, fills []*fill) error {
	f := j.f
	missing := fills[:0]
	for _, one := range fills {
		here, err := f.fillLocally(ctx, one)
		if err != nil {
			return err
		}
		if here {
			f.finish(nil, one)
		} else {
			missing = append(missing, one)
		}
	}
	fills = missing
	hasExtents := func(one *fill) bool { n, _ := f.t.UnitExtents(one.unit); return n > 0 }
	if j.prio == demand && !slices.ContainsFunc(fills, hasExtents) {
		return errAbandoned // what a reader asked for is here; the rest can wait
	}
	if len(fills) == 0 {
		return nil
	}
	switch {
	case f.t.Codec == blob.Whole:
		return errors.New("it is one piece and cannot be read by parts; remove the image and pull it again")
	case j.src == nil:
		return errors.New("no source for this image")
	}
	if err := j.ticket.wait(ctx); err != nil {
		return err
	}
	for len(fills) > 0 {
		n := 1
		for n < len(fills) && gapBetween(f.t, fills[n-1].unit, fills[n].unit) <= j.gap {
			n++
		}
		if err := j.fetchRun(ctx, fills[:n]); err != nil {
			f.pool.metrics.fetchErrors.Inc()
			return err
		}
		fills = fills[n:]
	}
	return nil
}

const maxTries = 3 // at getting a unit's bytes right

// fetchRun fetches units by one request, and with them what lies in small gaps between them. A
// unit with wrong bytes is asked for again, from elsewhere if the source can.
func (j *job) fetchRun(ctx context.Context, fills []*fill) error {
	f := j.f
	try := 0
	for len(fills) > 0 {
		err := j.fetchStream(ctx, fills, try)
		if src := onlyWhole(j.src, err); src != nil {
			err = j.byPass(ctx, src, fills, try)
		}
		before := len(fills)
		fills = f.unfinished(fills)
		if len(fills) < before {
			try = 0
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, blob.ErrBytes) {
			return err
		}
		if try+1 >= maxTries {
			if src, ok := j.src.(Doubted); ok {
				src.Doubt()
			}
			return err
		}
		f.pool.metrics.wrongBytes.Inc()
		f.pool.log.Warn("source sent wrong bytes, asking again", "digest", f.img.ID(), "err", err)
		try++
	}
	return nil
}

// maxHeld is up to which size a packed unit is held in memory, so that it is decoded beside the
// next one's arrival. Larger ones are decoded as they come.
const maxHeld = 4 << 20

// fetchStream reads units from one request until the end or the first error, and decodes them on
// all cores.
func (j *job) fetchStream(ctx context.Context, fills []*fill, try int) (err error) {
	f := j.f
	first, last := f.t.Unit(fills[0].unit), f.t.Unit(fills[len(fills)-1].unit)
	if began := time.Now(); f.pool.observers.watched() {
		defer func() {
			f.pool.observers.tell(Event{Kind: Fetched, ID: f.img.ID(), Off: first.Off, Len: last.Off + last.Len - first.Off,
				For: j.prio.String(), Began: began, Took: time.Since(began), Err: err})
		}()
	}
	r, err := j.src.Open(ctx, first.Off, last.Off+last.Len-first.Off, try)
	if err != nil {
		return err
	}
	defer r.Close()
	in := &countingReader{r: r}
	defer func() {
		f.fetched.Add(in.n)
		f.pool.metrics.fetchBytes.Add(float64(in.n))
	}()
	var decoding errgroup.Group
	at := first.Off
	for _, one := range fills {
		if j.prio != demand {
			j.ticket.yield(ctx)
		}
		u := f.t.Unit(one.unit)
		if _, err = io.CopyN(io.Discard, in, u.Off-at); err != nil {
			break
		}
		at = u.Off + u.Len
		var head []byte
		if head, err = readHead(f.t.Codec, u.Len, in); err != nil {
			break
		}
		var room room
		if room, err = f.memoryFor(ctx, one.unit, head); err != nil {
			break
		}
		place := f.pool.placeFor(ctx, f.user(ctx), j.prio)
		if u.Len > maxHeld {
			rest := io.MultiReader(bytes.NewReader(head), io.LimitReader(in, u.Len-int64(len(head))))
			as := place.steps(rest, u.Len)
			err = j.take(one, func() ([]byte, error) { return f.decode(one.unit, as, nil, &room) })
			place.give()
			room.share.Release()
			if err != nil {
				break
			}
			continue
		}
		packed := make([]byte, u.Len)
		if _, err = io.ReadFull(in, packed[copy(packed, head):]); err != nil {
			room.share.Release()
			break
		}
		if err = place.take(); err != nil {
			room.share.Release()
			break
		}
		decoding.Go(func() error {
			defer room.share.Release()
			defer place.give()
			return j.take(one, func() ([]byte, error) { return f.decodeHeld(ctx, one.unit, packed, &room, place) })
		})
	}
	// A broken request matters less than bytes that are wrong: the former is made again anyway.
	if wrong := decoding.Wait(); wrong != nil {
		return wrong
	}
	return err
}

// take stores a unit that decode decodes, and lets those that wait for it go on.
func (j *job) take(one *fill, decode func() ([]byte, error)) (err error) {
	f := j.f
	if one.plain, err = decode(); err != nil {
		return err
	}
	if j.prio != background {
		f.img.NoteFetched(one.unit, j.prio == demand)
	}
	f.store(one)
	f.finish(nil, one)
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
