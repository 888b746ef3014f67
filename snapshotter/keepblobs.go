package snapshotter

import (
	"context"
	"time"
)

// What reads an image from containerd's content store misses layers that were never downloaded whole: exports, pushes to other
// registries, converters. Where an operator wants their blobs kept, those of imports go there on the way, and those of
// layers that are read by an index come here, one after another while no reader waits.

// keepBlobs completes containerd's content store until ctx ends.
func (c *chores) keepBlobs(ctx context.Context) {
	if c.opts.Layers.Blobs == nil {
		return
	}
	tick := time.NewTicker(backgroundCheck)
	defer tick.Stop()
	notBefore := map[*binding]time.Time{} // when what could not be kept, or is there, is looked at again
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for b, again := range notBefore {
			if time.Now().After(again) {
				delete(notBefore, b)
			}
		}
		for _, b := range c.bindings.all() {
			if ctx.Err() != nil || c.cache.Busy(backgroundCheck) {
				break
			}
			if src := b.source(); !notBefore[b].IsZero() || !c.layers.KeepsBlob(&src) {
				continue
			}
			notBefore[b] = time.Now().Add(completeAgain)
			if err := c.keepBlobOf(ctx, b); err != nil && ctx.Err() == nil {
				c.log.Warn("blob not kept in containerd's content store yet", "digest", b.source().Descriptor.Digest,
					"image", b.source().Image, "err", err)
			}
		}
	}
}

// keepBlobOf puts a mounted layer's blob into containerd's content store, unless it is there. What the cache misses of the layer is
// filled on the way.
func (c *chores) keepBlobOf(ctx context.Context, b *binding) error {
	b.mu.Lock()
	f, src := b.file, b.saved.Source
	ready := b.how != notMounted && f != nil && b.saved.Quarantined == ""
	b.mu.Unlock()
	if !ready || src.Namespace == "" || c.layers.Places.Stored(ctx, &src) {
		return nil
	}
	return c.layers.Imports.FileBlob(ctx, f, &src)
}
