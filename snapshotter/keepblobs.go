package snapshotter

import (
	"context"
	"time"
)

// What reads an image from containerd's content store misses layers that were never downloaded whole: exports, pushes to other
// registries, converters. Where an operator wants their blobs kept, those of imports go there on the way, and those of
// layers that are read by an index come here, one after another while no reader waits.

// keepBlobs completes containerd's content store until ctx ends.
func (s *Snapshotter) keepBlobs(ctx context.Context) {
	if s.opts.Layers.Blobs == nil {
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
		for _, b := range s.allBindings() {
			if ctx.Err() != nil || s.cache.Busy(backgroundCheck) {
				break
			}
			if src := b.source(); !notBefore[b].IsZero() || !s.layers.KeepsBlob(&src) {
				continue
			}
			notBefore[b] = time.Now().Add(completeAgain)
			if err := s.keepBlobOf(ctx, b); err != nil && ctx.Err() == nil {
				s.log.Warn("blob not kept in containerd's content store yet", "digest", b.source().Descriptor.Digest,
					"image", b.source().Image, "err", err)
			}
		}
	}
}

// keepBlobOf puts a mounted layer's blob into containerd's content store, unless it is there. What the cache misses of the layer is
// filled on the way.
func (s *Snapshotter) keepBlobOf(ctx context.Context, b *binding) error {
	b.mu.Lock()
	f, src := b.file, b.saved.Source
	ready := b.how != notMounted && f != nil && b.saved.Quarantined == ""
	b.mu.Unlock()
	if !ready || src.Namespace == "" || s.layers.Places.Stored(ctx, &src) {
		return nil
	}
	return s.layers.Imports.FileBlob(ctx, f, &src)
}
