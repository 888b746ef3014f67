package cache

import (
	"context"
	"errors"
	"sync"
)

// Prefetch makes units present, in the order given, behind every reader that waits. It returns
// when all are here, with the errors of those that are not, or soon after ctx ends.
func (f *File) Prefetch(ctx context.Context, units []uint32) error {
	return f.prefetch(ctx, units, prefetch, maxPrefetch)
}

func (f *File) prefetch(ctx context.Context, units []uint32, prio priority, atOnce int) error {
	var (
		mu   sync.Mutex
		errs []error
		wg   sync.WaitGroup
	)
	slots := make(chan struct{}, atOnce)
	for len(units) > 0 && ctx.Err() == nil {
		if prio == background {
			if err := f.waitTurn(ctx); err != nil {
				break
			}
		}
		var fills []*unitFill
		fills, units = f.startBulk(units, prio)
		if len(fills) == 0 {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := f.awaitBulk(ctx, fills)
			if errors.Is(err, errAbandoned) && ctx.Err() == nil {
				// We joined a reader's fetch that its readers left; it is ours to make now.
				err = f.prefetch(ctx, unitsOf(fills), prio, atOnce)
			}
			if err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func unitsOf(fills []*unitFill) []uint32 {
	units := make([]uint32, len(fills))
	for i, fill := range fills {
		units[i] = fill.unit
	}
	return units
}

// PrefetchAll makes the file complete.
func (f *File) PrefetchAll(ctx context.Context) error { return f.Prefetch(ctx, f.allUnits()) }

// CompleteInBackground makes the file complete behind everything else, at Options.Rate.
func (f *File) CompleteInBackground(ctx context.Context) error {
	return f.prefetch(ctx, f.allUnits(), background, maxBackground)
}

func (f *File) allUnits() []uint32 {
	units := make([]uint32, f.t.nUnits)
	for i := range units {
		units[i] = uint32(i)
	}
	return units
}

// waitTurn waits until the rate of background work allows one more request.
func (f *File) waitTurn(ctx context.Context) error {
	if f.c.limiter == nil {
		return nil
	}
	return f.c.limiter.WaitN(ctx, bulkRequestSize)
}

// startBulk starts a job for the first wanted units, or joins the first that is in flight.
func (f *File) startBulk(units []uint32, prio priority) (fills []*unitFill, rest []uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone || f.closing {
		return nil, nil
	}
	var run []uint32
	size := int64(0)
	for len(units) > 0 {
		u := units[0]
		if int(u) >= f.t.nUnits {
			units = units[1:]
			continue
		}
		if fill := f.inflight[u]; fill != nil {
			if len(run) > 0 {
				break
			}
			fill.job.users++
			return []*unitFill{fill}, units[1:]
		}
		n := f.t.unit(u).Len
		switch {
		case !f.wantedLocked(u) && len(run) == 0:
			units = units[1:]
			continue
		case !f.wantedLocked(u), len(run) > 0 && (u != run[len(run)-1]+1 || size+n > bulkRequestSize):
			return f.startLocked(run, prio), units
		}
		run = append(run, u)
		size += n
		units = units[1:]
	}
	if len(run) == 0 {
		return nil, nil
	}
	return f.startLocked(run, prio), units
}

// awaitBulk waits for the units of one job and leaves it once.
func (f *File) awaitBulk(ctx context.Context, fills []*unitFill) error {
	var err error
	for _, fill := range fills[1:] {
		select {
		case <-fill.done:
			err = errors.Join(err, fill.err)
		case <-ctx.Done():
		}
	}
	return errors.Join(err, f.await(ctx, fills[:1]))
}
