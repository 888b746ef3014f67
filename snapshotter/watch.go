package snapshotter

import (
	"context"
	"time"

	"github.com/remora-storage/remora/cache"
)

const (
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

// watch has the diffID of layers checked that have become complete, and drops what nobody came for, until ctx ends.
func (c *chores) watch(ctx context.Context) {
	tick := time.NewTicker(completeCheck)
	defer tick.Stop()
	x := newChecks(c)
	dropped := time.Now()
	for {
		select {
		case <-ctx.Done():
			return // started waits for what runs
		case one := <-x.ended:
			x.note(one)
			continue
		case <-tick.C:
		}
		c.layers.Sweep()
		c.starts.Sweep()
		c.layers.Indexes.Sweep(c.starts.Starting)
		if time.Since(dropped) > dropEvery {
			c.dropPages()
			dropped = time.Now()
		}
		x.begin(ctx)
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
