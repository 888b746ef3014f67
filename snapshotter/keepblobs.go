package snapshotter

import (
	"context"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache"
)

// What reads an image from containerd's content store misses layers that were never downloaded whole: exports, pushes to other
// registries, converters. Where an operator wants their blobs kept, those of imports go there on the way, and those of
// layers that are read by an index come here, one after another while no reader waits.

// keepBlobs completes containerd's content store until ctx ends.
func (s *Snapshotter) keepBlobs(ctx context.Context) {
	if s.layers.blobs == nil {
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
			if ctx.Err() != nil || s.layers.cache.Busy(backgroundCheck) {
				break
			}
			if !notBefore[b].IsZero() || !s.layers.importOf(b.source().Repo).KeepBlobs {
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
	if !ready || src.Namespace == "" || s.layers.stored(ctx, &src) {
		return nil
	}
	return s.pipeBlob(ctx, f, &src)
}

func (s *Snapshotter) pipeBlob(ctx context.Context, f *cache.File, src *Source) error {
	streaming, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	streamed := make(chan struct{})
	s.started.Go(func() {
		defer close(streamed)
		w.CloseWithError(f.Stream(streaming, src.DiffID, w, nil))
	})
	desc := ocispec.Descriptor{MediaType: src.Descriptor.MediaType, Digest: src.Descriptor.Digest, Size: src.Descriptor.Size}
	err := s.layers.blobs.KeepBlob(ctx, src.Namespace, desc, src.Repo, src.DiffID, r)
	cancel() // if the store has enough, or has failed
	r.CloseWithError(io.ErrClosedPipe)
	<-streamed
	return err
}
