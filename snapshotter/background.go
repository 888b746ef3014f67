package snapshotter

import (
	"context"
	"errors"
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

// completeLayers completes one layer after another until ctx ends.
func (c *chores) completeLayers(ctx context.Context) {
	if c.opts.Background != BackgroundIdle && c.opts.Background != BackgroundOn {
		return
	}
	tick := time.NewTicker(backgroundCheck)
	defer tick.Stop()
	notBefore := map[*cache.File]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for f, again := range notBefore {
			if time.Now().After(again) {
				delete(notBefore, f)
			}
		}
		for _, b := range c.bindings.all() {
			f := c.toComplete(b)
			if f == nil || ctx.Err() != nil || !notBefore[f].IsZero() {
				continue
			}
			if c.opts.Background == BackgroundIdle && c.cache.Busy(idleAfter) {
				break
			}
			if err := c.completeOne(ctx, f); err != nil {
				notBefore[f] = time.Now().Add(completeAgain)
				c.log.Debug("layer not completed yet", "digest", f.ID(), "err", err)
			}
		}
	}
}

// toComplete returns a binding's image if it is mounted and misses something that would fit.
func (c *chores) toComplete(b *binding) *cache.File {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how != mountedLazy || b.saved.Quarantined != "" || b.file.Complete() || !b.file.Fits() {
		return nil
	}
	return b.file
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
