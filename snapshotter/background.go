package snapshotter

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/remora-storage/remora/cache"
)

// Background says when layers are completed that nobody has asked to be complete.
type Background string

// The times. The zero value is off.
const (
	BackgroundOff  Background = "off"
	BackgroundIdle Background = "idle" // while no reader has waited for a while
	BackgroundOn   Background = "on"   // at once, behind everything else
)

const (
	backgroundCheck = 2 * time.Second
	idleAfter       = 5 * time.Second // since the last read that waited, and since the mount
	completeAgain   = time.Minute     // after a layer could not be completed
)

// oneByOne has do done to each of what list returns, again and again until ctx ends: to one after another, while others are not busy.
// What has failed is left alone for a while.
func oneByOne[T comparable](ctx context.Context, busy func() bool, list func() []T, do func(T) error) {
	tick := time.NewTicker(backgroundCheck)
	defer tick.Stop()
	next := func() bool {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
			return true
		}
	}
	notBefore := map[T]time.Time{}
	for next() {
		maps.DeleteFunc(notBefore, func(_ T, again time.Time) bool { return time.Now().After(again) })
		for _, one := range list() {
			if !notBefore[one].IsZero() {
				continue
			}
			for busy() {
				if !next() {
					return
				}
			}
			if ctx.Err() != nil {
				return
			}
			if err := do(one); err != nil {
				notBefore[one] = time.Now().Add(completeAgain)
			}
		}
	}
}

// completeLayers completes one layer after another until ctx ends.
func (c *chores) completeLayers(ctx context.Context) {
	if c.opts.Background != BackgroundIdle && c.opts.Background != BackgroundOn {
		return
	}
	busy := func() bool { return c.opts.Background == BackgroundIdle && c.cache.Busy(idleAfter) }
	oneByOne(ctx, busy, c.incomplete, func(b *binding) error {
		f := c.toComplete(b)
		if f == nil {
			return nil // it was completed meanwhile
		}
		err := c.completeOne(ctx, f)
		if err != nil {
			c.log.Debug("layer not completed yet", "digest", f.ID(), "err", err)
		}
		return err
	})
}

// incomplete returns the layers to complete.
func (c *chores) incomplete() []*binding {
	return slices.DeleteFunc(c.bindings.all(), func(b *binding) bool { return c.toComplete(b) == nil })
}

// toComplete returns a binding's image if it is mounted and misses something that would fit.
func (c *chores) toComplete(b *binding) *cache.File {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how != mountedLazy || b.saved.Quarantined != "" || b.file.Complete() || !b.file.Fits() {
		return nil
	}
	return cache.For(b.file, b.saved.Source.Repo)
}

var errBusy = errors.New("readers wait")

// completeOne completes a layer, or stops when somebody waits for a read.
func (c *chores) completeOne(ctx context.Context, f *cache.File) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if c.opts.Background == BackgroundIdle {
		watch := time.NewTicker(backgroundCheck)
		defer watch.Stop()
		done := make(chan struct{})
		defer close(done)
		c.started.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-watch.C:
					if c.cache.Busy(backgroundCheck) {
						stop(errBusy)
					}
				}
			}
		})
	}
	return f.CompleteInBackground(ctx)
}
