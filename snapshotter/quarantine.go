package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// checkDiffID checks a layer before it is mounted, if what it decodes to is known, as it is of one that
// was imported, or is to be known before its first use.
func (m *mending) checkDiffID(ctx context.Context, b *binding, f *cache.File) error {
	src := b.source()
	if !f.Known() {
		if !m.layers.ProveBeforeUse(&src) {
			return nil
		}
		if err := cache.For(f, src.Repo).PrefetchAll(ctx); err != nil {
			return err
		}
	}
	err := cache.For(f, src.Repo).Verify(ctx, src.DiffID)
	if errors.Is(err, cache.ErrDiffID) {
		b.mu.Lock()
		b.file = f
		b.mu.Unlock()
		m.quarantine(f, err)
		m.dropUnused(f)
	}
	return err
}

// dropUnused removes the bytes of a layer that no snapshot has, or none that may use it.
func (m *mending) dropUnused(f *cache.File) {
	if f == nil {
		return
	}
	for _, b := range m.bindings.all() {
		b.mu.Lock()
		good := b.file == f && b.saved.Quarantined == ""
		b.mu.Unlock()
		if good || b.awaits(f) {
			return
		}
	}
	for _, b := range m.bindings.all() {
		if src := b.source(); b.image() == f {
			m.layers.Forget(&src)
		}
	}
	if err := m.removeImage(f.ID()); err != nil {
		m.log.Warn("refused layer's bytes stay in the cache", "digest", f.ID(), "err", err)
	}
}

// unclaimed removes what was imported and no snapshot wants.
func (m *mending) unclaimed(src *layers.Source, f *cache.File) {
	for _, b := range m.bindings.all() {
		if theirs := b.source(); b.cacheID() == f.ID() || b.awaits(f) || b.cacheID() == "" && theirs.Descriptor.Digest == src.Descriptor.Digest {
			return
		}
	}
	if err := m.removeImage(f.ID()); err != nil {
		m.log.Warn("layer that nobody came for stays in the cache", "digest", src.Descriptor.Digest, "err", err)
	}
}

// awaits reports whether a binding is to show an image once nothing uses what it shows now.
func (b *binding) awaits(f *cache.File) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.doubt != nil && b.doubt.with != nil && b.doubt.with.file == f
}

// quarantine keeps a layer from being used: its bytes are not what the configuration of an image
// promises, so the image that brought it may not decide what others see. Snapshots of images that
// promise what the layer is known to be keep it.
func (m *mending) quarantine(f *cache.File, why error) {
	for _, b := range m.bindings.all() {
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
		stays := m.mountings.unmountLocked(b)
		b.attempt = failed
		m.telling.image(EventBroken, &b.saved.Source, b.saved.Quarantined)
		b.mu.Unlock()
		m.log.Error("layer quarantined", "key", b.saved.Name, "digest", b.saved.Source.Descriptor.Digest,
			"image", b.saved.Source.Image, "err", errors.Join(why, err))
		if stays != nil {
			m.log.Error("quarantined layer stays mounted", "key", b.saved.Name, "err", stays)
		}
	}
}

// dropImage removes a binding's image from the cache unless another binding needs it.
func (m *mending) dropImage(b *binding) error {
	id, src, key := b.cacheID(), b.source(), m.bindings.keyOf(b)
	wanted, used, same := false, false, false
	for _, other := range m.bindings.all() {
		with := other.cacheID()
		wanted = wanted || (with == id || with == "") && m.bindings.keyOf(other) == key
		used = used || with == id
		same = same || with == id && other.source().Repo == src.Repo
	}
	if !wanted {
		m.layers.Forget(&src)
	}
	if id == "" || wanted || used {
		if used && !same {
			m.layers.Sources.Remove(id, src.Repo)
		}
		return nil
	}
	return m.removeImage(id)
}

// removeImage removes an image from the cache.
func (m *mending) removeImage(id string) error {
	m.layers.Sources.Forget(id)
	if err := m.exports.forget(id); err != nil {
		return err
	}
	if err := m.cache.Remove(id); err != nil && !errors.Is(err, cache.ErrNotFound) {
		return err
	}
	return nil
}
