package snapshotter

import (
	"context"
	"errors"
	"time"

	"github.com/remora-storage/remora/cache"
)

const (
	verifyAgain   = time.Minute // after the registry could not be reached
	completeCheck = time.Second
	dropEvery     = 10 * time.Second // second copies in the page cache
)

// chores are what is done for layers that nobody waits for.
type chores struct {
	*base
	bindings  *bindings
	mountings *mountings
	mending   *mending
}

// watch checks the diffID of layers that have become complete, hands them to the kernel, and
// drops indexes that nobody came for, until ctx ends.
func (c *chores) watch(ctx context.Context) {
	tick := time.NewTicker(completeCheck)
	defer tick.Stop()
	notBefore := map[*cache.File]time.Time{}
	dropped := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.layers.Sweep()
		c.starts.Sweep()
		c.layers.Indexes.Sweep(c.starts.Starting)
		if time.Since(dropped) > dropEvery {
			c.dropPages()
			dropped = time.Now()
		}
		for _, b := range c.bindings.all() {
			b.mu.Lock()
			f, src, ready := b.file, b.saved.Source, b.how == mountedLazy && b.saved.Quarantined == ""
			b.mu.Unlock()
			if !ready || !f.Complete() || time.Now().Before(notBefore[f]) {
				continue
			}
			if err := c.exports.complete(f); err != nil {
				c.log.Warn("complete layer still asks for reads", "digest", src.Descriptor.Digest, "err", err)
			}
			if err := f.Verify(ctx, src.DiffID); errors.Is(err, cache.ErrDiffID) {
				c.mending.quarantine(f, err)
			} else if err != nil {
				notBefore[f] = time.Now().Add(verifyAgain)
				c.log.Warn("diffID not checked yet", "digest", src.Descriptor.Digest, "err", err)
			} else {
				c.mountings.goDirect(b)
				delete(notBefore, f)
			}
		}
	}
}

// dropPages gives back second copies of what mounts have read.
func (c *chores) dropPages() {
	done := map[*cache.File]bool{}
	for _, b := range c.bindings.all() {
		if f := b.image(); f != nil && !done[f] {
			done[f] = true
			f.DropPages()
		}
	}
}
