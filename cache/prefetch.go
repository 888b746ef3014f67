package cache

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"
)

// A Piece is a unit of a file that is to be made present.
type Piece struct {
	File *File
	Unit uint32
}

// Prefetch makes pieces present behind every reader that waits. next returns the pieces that come
// next, about n packed bytes of them, or none at the end. Pieces of one answer that are neighbours
// in their blob, or nearly so, are fetched by one request; what comes in an earlier answer is asked
// for earlier. Prefetch returns when all are here, with the errors of those that are not, or soon
// after ctx ends.
func (c *Cache) Prefetch(ctx context.Context, next func(n int64) []Piece) error {
	return c.prefetch(ctx, next, ahead)
}

// Prefetch makes units of one file present.
func (f *File) Prefetch(ctx context.Context, units []uint32) error {
	return f.c.Prefetch(ctx, f.pieces(units))
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

// PrefetchAll makes the file complete.
func (f *File) PrefetchAll(ctx context.Context) error {
	return f.c.prefetch(ctx, f.pieces(f.allUnits()), whole)
}

// CompleteInBackground makes the file complete behind everything else, at Options.Rate.
func (f *File) CompleteInBackground(ctx context.Context) error {
	return f.c.prefetch(ctx, f.pieces(f.allUnits()), behind)
}

func (f *File) allUnits() []uint32 {
	units := make([]uint32, f.t.nUnits)
	for i := range units {
		units[i] = uint32(i)
	}
	return units
}

// pieces hands units out in their order, without those that are here.
func (f *File) pieces(units []uint32) func(n int64) []Piece {
	return func(n int64) (some []Piece) {
		for ; len(units) > 0 && n > 0; units = units[1:] {
			if int(units[0]) < f.t.nUnits && !f.here(units[0]) {
				some = append(some, Piece{f, units[0]})
				n -= f.t.unit(units[0]).Len
			}
		}
		return some
	}
}

// here reports whether a unit needs no fetch, neither a new one nor one that is under way.
func (f *File) here(u uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inflight[u] == nil && !f.wantedLocked(u)
}

func (c *Cache) prefetch(ctx context.Context, next func(n int64) []Piece, m manner) error {
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
		window = sizesOf(pieces[0].File.source()).flight
		for _, b := range batches(pieces, m) {
			if ctx.Err() != nil {
				break
			}
			if m.prio == background && c.limiter != nil {
				if err := c.limiter.WaitN(ctx, bulkRequestSize); err != nil {
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
				if err := b.f.fetchBatch(ctx, b.units, m); err != nil && ctx.Err() == nil {
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

func (f *File) source() Source {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.src
}

// A batch is units of one file, ascending, that one request fetches.
type batch struct {
	f     *File
	units []uint32
}

// batches makes as few requests of pieces as their places allow, in the order in which the first
// piece of each came.
func batches(pieces []Piece, m manner) []batch {
	byFile := map[*File][]uint32{}
	rank := map[Piece]int{}
	var files []*File
	for i, p := range pieces {
		if _, again := rank[p]; again {
			continue
		}
		rank[p] = i
		if byFile[p.File] == nil {
			files = append(files, p.File)
		}
		byFile[p.File] = append(byFile[p.File], p.Unit)
	}
	var all []batch
	first := map[int]int{} // rank of a batch
	for _, f := range files {
		units := byFile[f]
		slices.Sort(units)
		most := m.gap(f.source())
		start, n, least := 0, int64(0), len(pieces)
		for i, u := range units {
			if i > start {
				gap := f.gapBetween(units[i-1], u)
				if gap > most || n+gap+f.t.unit(u).Len > m.largest {
					first[len(all)] = least
					all = append(all, batch{f, units[start:i]})
					start, n, least = i, 0, len(pieces)
				} else {
					n += gap
				}
			}
			n += f.t.unit(u).Len
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

// fetchBatch makes units present: those that nobody fetches yet by one job, the others by joining.
func (f *File) fetchBatch(ctx context.Context, units []uint32, m manner) error {
	for {
		fills := f.startBatch(units, m)
		if len(fills) == 0 {
			return nil
		}
		err := f.awaitBatch(ctx, fills)
		if !errors.Is(err, errAbandoned) || ctx.Err() != nil {
			return err
		}
		// We joined a reader's fetch that its readers left; it is ours to make now.
	}
}

// startBatch starts one job for the units that are wanted, and joins those in flight.
func (f *File) startBatch(units []uint32, m manner) (fills []*unitFill) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || f.closing {
		return nil
	}
	var run []uint32
	for _, u := range units {
		if fill := f.inflight[u]; fill != nil {
			fill.job.users++
			fills = append(fills, fill)
		} else if f.wantedLocked(u) {
			run = append(run, u)
		}
	}
	if len(run) == 0 {
		return fills
	}
	started := f.startLocked(run, m.prio, m.gap(f.src))
	started[0].job.users += len(started) - 1 // one for each fill that is awaited
	return append(fills, started...)
}

// awaitBatch waits for all fills and leaves their jobs.
func (f *File) awaitBatch(ctx context.Context, fills []*unitFill) error {
	var errs []error
	for _, fill := range fills {
		if err := f.await(ctx, []*unitFill{fill}); err != nil &&
			!slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
