package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
)

const (
	verifyAgain   = time.Minute // after the registry could not be reached
	completeCheck = time.Second
	dropEvery     = 10 * time.Second // second copies in the page cache
)

// watch checks the diffID of layers that have become complete, hands them to the kernel, and
// drops indexes that nobody came for, until ctx ends.
func (s *Snapshotter) watch(ctx context.Context) {
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
		s.layers.Sweep()
		s.starts.Sweep()
		s.layers.Indexes.Sweep(s.starts.Starting)
		if time.Since(dropped) > dropEvery {
			s.dropPages()
			dropped = time.Now()
		}
		for _, b := range s.allBindings() {
			b.mu.Lock()
			f, src, ready := b.file, b.saved.Source, b.how == mountedLazy && b.saved.Quarantined == ""
			b.mu.Unlock()
			if !ready || !f.Complete() || time.Now().Before(notBefore[f]) {
				continue
			}
			if err := s.exports.complete(f); err != nil {
				s.log.Warn("complete layer still asks for reads", "digest", src.Descriptor.Digest, "err", err)
			}
			if err := f.Verify(ctx, src.DiffID); errors.Is(err, cache.ErrDiffID) {
				s.quarantine(f, err)
			} else if err != nil {
				notBefore[f] = time.Now().Add(verifyAgain)
				s.log.Warn("diffID not checked yet", "digest", src.Descriptor.Digest, "err", err)
			} else {
				s.goDirect(b)
				delete(notBefore, f)
			}
		}
	}
}

// dropPages gives back second copies of what mounts have read.
func (s *Snapshotter) dropPages() {
	done := map[*cache.File]bool{}
	for _, b := range s.allBindings() {
		if f := b.image(); f != nil && !done[f] {
			done[f] = true
			f.DropPages()
		}
	}
}

// checkDiffID checks a layer before it is mounted, if what it decodes to is known, as it is of one that
// was imported, or is to be known before its first use.
func (s *Snapshotter) checkDiffID(ctx context.Context, b *binding, f *cache.File) error {
	src := b.source()
	if !f.Known() {
		if !s.layers.ProveBeforeUse(&src) {
			return nil
		}
		if err := f.PrefetchAll(ctx); err != nil {
			return err
		}
	}
	err := f.Verify(ctx, b.source().DiffID)
	if errors.Is(err, cache.ErrDiffID) {
		b.mu.Lock()
		b.file = f
		b.mu.Unlock()
		s.quarantine(f, err)
		s.dropUnused(f)
	}
	return err
}

// dropUnused removes the bytes of a layer that no snapshot has, or none that may use it.
func (s *Snapshotter) dropUnused(f *cache.File) {
	if f == nil {
		return
	}
	for _, b := range s.allBindings() {
		b.mu.Lock()
		good := b.file == f && b.saved.Quarantined == ""
		b.mu.Unlock()
		if good {
			return
		}
	}
	for _, b := range s.allBindings() {
		if src := b.source(); b.image() == f {
			s.layers.Forget(&src)
		}
	}
	if err := s.removeImage(f.ID()); err != nil {
		s.log.Warn("refused layer's bytes stay in the cache", "digest", f.ID(), "err", err)
	}
}

// unclaimed removes what was imported and no snapshot wants.
func (s *Snapshotter) unclaimed(src *layers.Source, f *cache.File) {
	for _, b := range s.allBindings() {
		if theirs := b.source(); b.cacheID() == f.ID() || b.cacheID() == "" && theirs.Descriptor.Digest == src.Descriptor.Digest {
			return
		}
	}
	if err := s.removeImage(f.ID()); err != nil {
		s.log.Warn("layer that nobody came for stays in the cache", "digest", src.Descriptor.Digest, "err", err)
	}
}

// quarantine keeps a layer from being used: its bytes are not what the configuration of an image
// promises, so the image that brought it may not decide what others see. Snapshots of images that
// promise what the layer is known to be keep it.
func (s *Snapshotter) quarantine(f *cache.File, why error) {
	for _, b := range s.allBindings() {
		b.mu.Lock()
		if b.file != f || f.Verified(b.saved.Source.DiffID) {
			b.mu.Unlock()
			continue
		}
		b.saved.Quarantined = fmt.Sprintf("%v; image %s brought it: remove that image, and what shares the layer, and pull again",
			why, b.saved.Source.Image)
		err := b.saved.write(b.dir)
		failed := &attempt{done: make(chan struct{}), err: fmt.Errorf("%s is quarantined: %s", b.saved.Source.Describe(), b.saved.Quarantined)}
		close(failed.done)
		stays := s.unmountLocked(b)
		b.attempt = failed
		b.mu.Unlock()
		s.log.Error("layer quarantined", "key", b.saved.Name, "digest", b.saved.Source.Descriptor.Digest,
			"image", b.saved.Source.Image, "err", errors.Join(why, err))
		if stays != nil {
			s.log.Error("quarantined layer stays mounted", "key", b.saved.Name, "err", stays)
		}
	}
}
