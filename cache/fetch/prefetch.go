package fetch

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/remora-storage/remora/cache/image"
)

// A Piece is a unit that is to be made present.
type Piece struct {
	Of   *Fetcher
	Unit uint32
}

// Prefetch makes pieces present behind every reader that waits. next returns the pieces that come
// next, about n packed bytes of them, or none at the end. Pieces of one answer that are neighbours
// in their blob, or nearly so, are fetched by one request; what comes in an earlier answer is asked
// for earlier. Prefetch returns when all are here, with the errors of those that are not, or soon
// after ctx ends.
func (p *Pool) Prefetch(ctx context.Context, next func(n int64) []Piece) error {
	return p.prefetch(ctx, next, ahead)
}

// Prefetch makes units of the image present.
func (f *Fetcher) Prefetch(ctx context.Context, units []uint32) error {
	return f.pool.Prefetch(ctx, f.pieces(units))
}

// A manner is how bytes are fetched that no reader waits for.
type manner struct {
	prio    priority
	atOnce  int64 // requests
	largest int64 // packed bytes of one
	gaps    bool  // a gap may be read where that is faster than another request
}

// gap is how many packed bytes may be read and dropped.
func (m manner) gap(src Source) int64 {
	if !m.gaps {
		return 0
	}
	return sizesOf(src).gap
}

var (
	ahead  = manner{prefetch, maxPrefetchOfOne, 8 << 20, true}
	whole  = manner{prefetch, maxPrefetchOfOne, 8 << 20, false} // every byte counts: much may be here already
	behind = manner{background, maxBackground, bulkRequestSize, false}
)

// PrefetchAll makes the image complete.
func (f *Fetcher) PrefetchAll(ctx context.Context) error {
	return f.pool.prefetch(ctx, f.pieces(allUnits(f.t)), whole)
}

// CompleteInBackground makes the image complete behind everything else, at Options.Rate.
func (f *Fetcher) CompleteInBackground(ctx context.Context) error {
	return f.pool.prefetch(ctx, f.pieces(allUnits(f.t)), behind)
}

func allUnits(t *image.Table) []uint32 {
	units := make([]uint32, t.NUnits)
	for i := range units {
		units[i] = uint32(i)
	}
	return units
}

// pieces hands units out in their order, without those that are here.
func (f *Fetcher) pieces(units []uint32) func(n int64) []Piece {
	return func(n int64) (some []Piece) {
		for ; len(units) > 0 && n > 0; units = units[1:] {
			if int(units[0]) < f.t.NUnits && !f.here(units[0]) {
				some = append(some, Piece{f, units[0]})
				n -= f.t.Unit(units[0]).Len
			}
		}
		return some
	}
}

// here reports whether a unit needs no fetch, neither a new one nor one that is under way.
func (f *Fetcher) here(u uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inflight[u] == nil && !f.img.Wants(u)
}

func (p *Pool) prefetch(ctx context.Context, next func(n int64) []Piece, m manner) error {
	var (
		mu   sync.Mutex
		errs []error
		wg   sync.WaitGroup
	)
	slots, flight := semaphore.NewWeighted(m.atOnce), semaphore.NewWeighted(wholeFlight)
	window := int64(unknownLink)
	for ctx.Err() == nil {
		pieces := next(window)
		if len(pieces) == 0 {
			break
		}
		window = sizesOf(pieces[0].Of.source(ctx)).flight
		for _, b := range batches(ctx, pieces, m) {
			if ctx.Err() != nil {
				break
			}
			if m.prio == background && p.limiter != nil {
				if err := p.limiter.WaitN(ctx, bulkRequestSize); err != nil {
					break
				}
			}
			share := shareOf(window, b.bytes())
			if slots.Acquire(ctx, 1) != nil {
				break
			}
			if flight.Acquire(ctx, share) != nil {
				break
			}
			wg.Go(func() {
				defer slots.Release(1)
				defer flight.Release(share)
				if err := b.fetch(ctx, m); err != nil && ctx.Err() == nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// A batch is units of one image, ascending, that one request fetches.
type batch struct {
	f     *Fetcher
	units []uint32
}

// batches makes as few requests of pieces as their places allow, in the order in which the first
// piece of each came.
func batches(ctx context.Context, pieces []Piece, m manner) []batch {
	byImage := map[*Fetcher][]uint32{}
	rank := map[Piece]int{}
	var fetchers []*Fetcher
	for i, p := range pieces {
		if _, again := rank[p]; again {
			continue
		}
		rank[p] = i
		if byImage[p.Of] == nil {
			fetchers = append(fetchers, p.Of)
		}
		byImage[p.Of] = append(byImage[p.Of], p.Unit)
	}
	var all []batch
	first := map[int]int{} // rank of a batch
	for _, f := range fetchers {
		units := byImage[f]
		slices.Sort(units)
		most := m.gap(f.source(ctx))
		start, n, least := 0, int64(0), len(pieces)
		for i, u := range units {
			if i > start {
				gap := gapBetween(f.t, units[i-1], u)
				if gap > most || n+gap+f.t.Unit(u).Len > m.largest {
					first[len(all)] = least
					all = append(all, batch{f, units[start:i]})
					start, n, least = i, 0, len(pieces)
				} else {
					n += gap
				}
			}
			n += f.t.Unit(u).Len
			least = min(least, rank[Piece{f, u}])
		}
		first[len(all)] = least
		all = append(all, batch{f, units[start:]})
	}
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(first[a], first[b]) })
	sorted := make([]batch, len(all))
	for i, k := range order {
		sorted[i] = all[k]
	}
	return sorted
}

// fetch makes the units present: those that nobody fetches yet by one job, the others by joining.
func (b batch) fetch(ctx context.Context, m manner) error {
	for {
		fills := b.start(ctx, m)
		if len(fills) == 0 {
			return nil
		}
		err := b.f.awaitAll(ctx, fills)
		if !errors.Is(err, errAbandoned) || ctx.Err() != nil {
			return err
		}
		// We joined a reader's fetch that its readers left; it is ours to make now.
	}
}

// start starts one job for the units that are wanted, and joins those in flight.
func (b batch) start(ctx context.Context, m manner) (fills []*fill) {
	f := b.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return nil
	}
	var run []uint32
	for _, u := range b.units {
		if one := f.inflight[u]; one != nil {
			one.job.users++
			fills = append(fills, one)
		} else if f.img.Wants(u) {
			run = append(run, u)
		}
	}
	if len(run) == 0 {
		return fills
	}
	started := f.startLocked(ctx, run, m.prio, m.gap(forAsker(ctx, f.src)))
	started[0].job.users += len(started) - 1 // one for each fill that is awaited
	return append(fills, started...)
}

// awaitAll waits for all fills and leaves their jobs.
func (f *Fetcher) awaitAll(ctx context.Context, fills []*fill) error {
	var errs []error
	for _, one := range fills {
		if err := f.await(ctx, []*fill{one}); err != nil &&
			!slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
