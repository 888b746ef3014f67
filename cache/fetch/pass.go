package fetch

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"time"

	"github.com/remora-storage/remora/cache/image"
)

// A host may begin to serve nothing but whole blobs while containers read: a cache was put before it, or lost a setting. The image was
// promised, so nobody else downloads the layer. Then its blob is read once, from its beginning to its end, for all that miss something of
// it. Each gets its unit when that comes by. What nobody has asked for is stored if all of the image fits, so that nobody need ask again.

// A Streamed source can be read whole where no range of it is to be had.
type Streamed interface {
	Source
	// OnlyWhole reports whether an error of Open says that no range is to be had, though all of the blob may be.
	OnlyWhole(err error) bool
	// Whole returns a reader of the blob from its beginning. try is as of Open.
	Whole(ctx context.Context, try int) (io.ReadCloser, error)
}

// onlyWhole returns a source as one of which no range is to be had, if an error of its Open says so; else nil.
func onlyWhole(src Source, err error) Streamed {
	if s, ok := src.(Streamed); ok && err != nil && s.OnlyWhole(err) {
		return s
	}
	return nil
}

// wholeFrom reads all of a blob, behind what comes before off.
func wholeFrom(ctx context.Context, src Streamed, off int64) (io.ReadCloser, error) {
	r, err := src.Whole(ctx, 0)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, off); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// A pass reads a blob once.
type pass struct {
	f      *Fetcher
	cancel context.CancelCauseFunc
	done   chan struct{}
	full   bool // what nobody waits for is not kept; run's own

	// Guarded by Fetcher.mu.
	at    int64            // packed bytes that it has gone by, or is about to
	wants map[uint32]*want // what somebody waits for
}

// A want is a unit that somebody waits for.
type want struct {
	one  *fill
	told chan error // is sent once how it ended; has room for that
}

// byPass returns when a pass has brought what is to be filled, or has failed. The job has no ticket meanwhile, since the pass has one.
func (j *job) byPass(ctx context.Context, src Streamed, fills []*fill, try int) error {
	j.ticket.release()
	for ctx.Err() == nil {
		for _, one := range j.f.unfinished(fills) { // a pass may have stored it
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
		p, joined, err := joinPass(ctx, j.f, src, fills, try)
		if err == nil {
			err = p.await(ctx, joined)
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
func joinPass(ctx context.Context, f *Fetcher, src Streamed, fills []*fill, try int) (p *pass, joined []*want, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return nil, nil, errors.New("image was removed, or the cache is closed")
	}
	if f.pass == nil {
		startPassLocked(ctx, f, src, try)
	}
	if f.t.Unit(fills[0].unit).Off < f.pass.at {
		return f.pass, nil, nil
	}
	for _, one := range fills {
		w := &want{one, make(chan error, 1)}
		f.pass.wants[one.unit] = w
		joined = append(joined, w)
	}
	return f.pass, joined, nil
}

// await returns when a pass has told how each of what was joined ended, with the first error; or if nothing was, when the pass has ended.
func (p *pass) await(ctx context.Context, joined []*want) (err error) {
	defer func() {
		p.f.mu.Lock()
		defer p.f.mu.Unlock()
		for _, w := range joined {
			if p.wants[w.one.unit] == w {
				delete(p.wants, w.one.unit)
			}
		}
	}()
	for _, w := range joined {
		select {
		case told := <-w.told:
			err = cmp.Or(err, told)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if joined != nil {
		return err
	}
	select {
	case <-p.done: // how it ended says nothing of the next one
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// startPassLocked starts a pass, which outlives ctx. That says for whom it is.
func startPassLocked(ctx context.Context, f *Fetcher, src Streamed, try int) {
	ctx, cancel := context.WithCancelCause(AskedBy(context.Background(), ctx.Value(asker{})))
	p := &pass{f: f, cancel: cancel, done: make(chan struct{}), wants: map[uint32]*want{}}
	f.pass = p
	ticket := f.pool.scheds.enter(src, prefetch)
	f.pool.started.Go(func() {
		defer cancel(nil)
		defer close(p.done)
		defer ticket.release()
		began := time.Now()
		n, err := p.run(ctx, src, ticket, try)
		f.pool.log.Info("blob was read whole, since no range of it is to be had", "digest", f.img.ID(), "bytes", n, "err", err)
		f.pool.observers.tell(Event{
			Kind: Fetched, ID: f.img.ID(), Len: n, For: prefetch.String(), Began: began, Took: time.Since(began), Err: err,
		})
		f.mu.Lock()
		defer f.mu.Unlock()
		f.pass = nil
		for _, w := range p.wants {
			w.told <- cmp.Or(err, io.ErrUnexpectedEOF)
		}
	})
}

// run reads a blob and returns how many bytes of it came. Where not all of the image would stay, it ends when nobody waits for more.
func (p *pass) run(ctx context.Context, src Streamed, ticket *ticket, try int) (n int64, err error) {
	f := p.f
	if err := ticket.wait(ctx); err != nil {
		return 0, err
	}
	r, err := src.Whole(ctx, try)
	if err != nil {
		return 0, err
	}
	defer r.Close() // only read
	in := &countingReader{r: r}
	defer func() {
		f.fetched.Add(in.n)
		f.pool.metrics.fetchBytes.Add(float64(in.n))
	}()
	p.full = !image.Fits(f.img) // what came would evict others, and in the end its own beginning
	for u := range uint32(f.t.NUnits) {
		w, awaited := p.comes(u)
		to, skipped := f.t.Unit(u).Off, w == nil && (p.full || !f.img.Wants(u))
		switch {
		case p.full && !awaited:
			return in.n, nil
		case skipped && !awaited:
			continue
		case skipped: // not before its bytes have come: somebody may want what is behind it
			to += f.t.Unit(u).Len
		case !awaited:
			ticket.yield(ctx)
		}
		if _, err := io.CopyN(io.Discard, in, to-in.n); err != nil {
			return in.n, p.tell(w, err)
		}
		if skipped {
			continue
		}
		if err := p.take(ctx, u, w, in); err != nil {
			return in.n, err
		}
	}
	return in.n, nil
}

// comes notes that a unit comes by, and returns who waits for it, and whether anybody waits for anything. Where nobody does and the pass is
// full, it ends, and nobody joins it from now on.
func (p *pass) comes(u uint32) (w *want, awaited bool) {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	unit := p.f.t.Unit(u)
	w, awaited, p.at = p.wants[u], len(p.wants) > 0, unit.Off+unit.Len
	if p.full && !awaited {
		p.at = math.MaxInt64
	}
	delete(p.wants, u)
	return w, awaited
}

// tell tells who waits for a unit, if anybody does, how that ended, and returns it.
func (p *pass) tell(w *want, err error) error {
	if w != nil {
		w.told <- err
	}
	return err
}

// take decodes a unit that comes by, and stores it. What is wrong of it ends no more than what its own job waits for.
func (p *pass) take(ctx context.Context, u uint32, w *want, in io.Reader) error {
	rest := &io.LimitedReader{R: in, N: p.f.t.Unit(u).Len}
	plain, err := p.f.streamUnit(ctx, u, rest, nil)
	if err != nil {
		_, broken := io.Copy(io.Discard, rest)
		_ = p.tell(w, err) // its job logs it; who has not asked finds it when they do
		if broken != nil || rest.N > 0 || ctx.Err() != nil {
			return err
		}
		return nil
	}
	if extents, _ := p.f.t.UnitExtents(u); extents > 0 && !p.f.img.HasUnit(u) {
		p.full = true
	}
	if w == nil {
		return nil
	}
	if w.one.job.prio != background {
		p.f.img.NoteFetched(u, w.one.job.prio == demand)
	}
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if p.f.inflight[u] == w.one { // else its job has ended
		w.one.plain = plain
		delete(p.f.inflight, u)
		close(w.one.done)
	}
	return p.tell(w, nil)
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
