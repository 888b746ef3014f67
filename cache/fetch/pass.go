package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/remora-storage/remora/cache/blob"
)

// A host may begin to serve nothing but whole blobs while containers read: a cache was put before it, or lost a setting. The image was
// promised, so nobody else downloads the layer. Then its blob is read once, from its beginning to its end, for all that miss something of
// it. Each gets its unit when that comes by. What nobody has asked for is stored as far as there is room, so that nobody need ask again.

// A Streamed source can be read whole where no range of it is to be had.
type Streamed interface {
	Source
	// OnlyWhole reports whether an error of Open says that no range is to be had, though all of the blob may be.
	OnlyWhole(err error) bool
	// Whole returns a reader of the blob from its beginning.
	Whole(ctx context.Context) (io.ReadCloser, error)
}

// onlyWhole returns a source as one of which no range is to be had, if an error of its Open says so; else nil.
func onlyWhole(src Source, err error) Streamed {
	if s, ok := src.(Streamed); ok && err != nil && s.OnlyWhole(err) {
		return s
	}
	return nil
}

// openFrom opens a range of a source, or where none is to be had all of it, behind what comes before.
func openFrom(ctx context.Context, src Source, off, n int64) (io.ReadCloser, error) {
	r, err := src.Open(ctx, off, n, 0)
	whole := onlyWhole(src, err)
	if whole == nil {
		return r, err
	}
	return wholeFrom(ctx, whole, off)
}

// wholeFrom reads all of a blob, behind what comes before off.
func wholeFrom(ctx context.Context, src Streamed, off int64) (io.ReadCloser, error) {
	r, err := src.Whole(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, off); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// A pass reads a blob once. Its fields but the first three are guarded by Fetcher.mu.
type pass struct {
	f      *Fetcher
	cancel context.CancelCauseFunc
	done   chan struct{}

	at    int64            // packed bytes that it has gone by, or is about to
	wants map[uint32]*fill // what somebody waits for
	err   error            // why it ended early; after done
}

// byPass returns when a pass has brought what is to be filled, or has failed. The job has no ticket meanwhile, since the pass has one.
func (j *job) byPass(ctx context.Context, src Streamed, fills []*fill) error {
	j.ticket.release()
	for ctx.Err() == nil {
		for _, one := range fills { // a pass may have stored it
			here, err := j.f.fillLocally(ctx, one)
			if err != nil {
				return err
			}
			if extents, _ := j.f.t.UnitExtents(one.unit); here || extents == 0 && !j.f.img.Wants(one.unit) {
				j.f.finish(nil, one)
			}
		}
		if fills = j.f.unfinished(fills); len(fills) == 0 {
			return nil
		}
		p, joined, err := joinPass(j.f, src, fills)
		if err == nil {
			err = p.await(ctx, joined)
		}
		if err == nil && joined != nil && len(j.f.unfinished(joined)) > 0 && ctx.Err() == nil {
			err = fmt.Errorf("a unit of it: %w", io.ErrUnexpectedEOF)
		}
		if err != nil && ctx.Err() == nil {
			j.ticket.renew()
			return errors.Join(err, j.ticket.wait(ctx))
		}
	}
	return context.Cause(ctx)
}

// joinPass has the pass that is under way bring what is to be filled, and starts one if there is none. Where the one under way has gone by
// some of that, nothing is joined.
func joinPass(f *Fetcher, src Streamed, fills []*fill) (p *pass, joined []*fill, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return nil, nil, errors.New("image was removed, or the cache is closed")
	}
	if f.pass == nil {
		startPassLocked(f, src)
	}
	if f.t.Unit(fills[0].unit).Off < f.pass.at {
		return f.pass, nil, nil
	}
	for _, one := range fills {
		f.pass.wants[one.unit] = one
	}
	return f.pass, fills, nil
}

// await returns when a pass has brought what was joined, or else has ended; with the error by which it did.
func (p *pass) await(ctx context.Context, joined []*fill) error {
	defer func() {
		p.f.mu.Lock()
		defer p.f.mu.Unlock()
		for _, one := range joined {
			if p.wants[one.unit] == one {
				delete(p.wants, one.unit)
			}
		}
	}()
	for _, one := range joined {
		select {
		case <-one.done:
		case <-p.done:
			return p.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if joined != nil {
		return nil
	}
	select {
	case <-p.done: // how it ended says nothing of the next one
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func startPassLocked(f *Fetcher, src Streamed) {
	ctx, cancel := context.WithCancelCause(context.Background())
	p := &pass{f: f, cancel: cancel, done: make(chan struct{}), wants: map[uint32]*fill{}}
	f.pass = p
	ticket := f.pool.scheds.enter(src, prefetch)
	f.pool.started.Go(func() {
		defer cancel(nil)
		defer close(p.done)
		defer ticket.release()
		began := time.Now()
		n, err := p.run(ctx, src, ticket)
		f.pool.log.Info("blob was read whole, since no range of it is to be had", "digest", f.img.ID(), "bytes", n, "err", err)
		f.pool.observers.tell(Event{
			Kind: Fetched, ID: f.img.ID(), Len: n, For: prefetch.String(), Began: began, Took: time.Since(began), Err: err,
		})
		f.mu.Lock()
		f.pass, p.err = nil, err
		f.mu.Unlock()
	})
}

// run reads a blob and returns how many bytes of it came. It ends early where nobody waits for more and there is no room for it.
func (p *pass) run(ctx context.Context, src Streamed, ticket *ticket) (n int64, err error) {
	f := p.f
	if err := ticket.wait(ctx); err != nil {
		return 0, err
	}
	r, err := src.Whole(ctx)
	if err != nil {
		return 0, err
	}
	defer r.Close() // only read
	in := &countingReader{r: r}
	defer func() {
		f.fetched.Add(in.n)
		f.pool.metrics.fetchBytes.Add(float64(in.n))
	}()
	full := false
	for u := range uint32(f.t.NUnits) {
		one, awaited := p.comes(u)
		switch {
		case one == nil && full && !awaited:
			return in.n, nil
		case one == nil && !f.img.Wants(u):
			continue
		case !awaited:
			ticket.yield(ctx)
		}
		unit := f.t.Unit(u)
		if _, err := io.CopyN(io.Discard, in, unit.Off-in.n); err != nil {
			return in.n, err
		}
		if err := p.take(ctx, u, one, in); err != nil {
			return in.n, err
		}
		extents, _ := f.t.UnitExtents(u)
		full = extents > 0 && !f.img.HasUnit(u)
	}
	return in.n, nil
}

// comes notes that a unit comes by, and returns who waits for it, and whether anybody waits for anything.
func (p *pass) comes(u uint32) (one *fill, awaited bool) {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	unit := p.f.t.Unit(u)
	one, awaited, p.at = p.wants[u], len(p.wants) > 0, unit.Off+unit.Len
	delete(p.wants, u)
	return one, awaited
}

// take decodes a unit that comes by, and stores it. What is wrong of one that nobody waits for is found by who does.
func (p *pass) take(ctx context.Context, u uint32, one *fill, in io.Reader) error {
	rest := &io.LimitedReader{R: in, N: p.f.t.Unit(u).Len}
	plain, err := p.f.streamUnit(ctx, u, rest, nil)
	if one == nil && errors.Is(err, blob.ErrBytes) {
		_, err = io.Copy(io.Discard, rest)
	}
	if one == nil || err != nil {
		return err
	}
	if one.job.prio != background {
		p.f.img.NoteFetched(u, one.job.prio == demand)
	}
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if p.f.inflight[u] == one { // else its job has ended
		one.plain = plain
		delete(p.f.inflight, u)
		close(one.done)
	}
	return nil
}

// wholeOr reads a blob by pieces, and goes on by a stream of all of it where no range is to be had.
type wholeOr struct {
	io.ReadCloser
	ctx  context.Context // of ReadBlob: the reader is one operation
	f    *Fetcher
	src  Source
	at   int64
	last bool // it is the stream
}

func (w *wholeOr) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.at += int64(n)
	whole := onlyWhole(w.src, err)
	if n > 0 || whole == nil || w.last {
		return n, err
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	w.last = true
	w.ReadCloser = w.f.pool.Stream(w.ctx, w.src, func(ctx context.Context) (io.ReadCloser, error) {
		return wholeFrom(ctx, whole, w.at)
	})
	return w.ReadCloser.Read(p)
}
