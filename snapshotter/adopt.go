package snapshotter

import (
	"cmp"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/cache"
)

// openImage opens a binding's image if it is in the cache.
func (m *mountings) openImage(b *binding) *cache.File {
	b.mu.Lock()
	saved := b.saved
	b.mu.Unlock()
	if saved.Quarantined != "" || saved.CacheID == "" {
		return nil
	}
	m.layers.Granted.Note(&saved.Source, saved.CacheID) // by an earlier life
	f, err := m.layers.File(saved.CacheID, &saved.Source)
	if err != nil {
		m.log.Warn("image not in the cache", "digest", saved.Source.Descriptor.Digest, "err", err)
		return nil
	}
	return m.layers.Sources.Add(f, &saved.Source)
}

// adoptBinding takes over what an earlier process has mounted on a binding's directory, the oldest
// first, or takes it away if it cannot be served any more.
func (m *mountings) adoptBinding(b *binding, left []mounts.Mount) {
	if b.isUnpacked() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(left) > 0 {
			b.how = mountedUnpacked
			m.finishAttemptLocked(b)
		}
		return
	}
	f := m.openImage(b)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.file = f
	if len(left) == 0 {
		return
	}
	dead := ""
	if f == nil {
		dead = cmp.Or(b.saved.Quarantined, "its image is no longer in the cache")
	}
	for _, on := range left {
		if dead == "" {
			dead = m.adoptMountLocked(b, on)
		}
	}
	if dead == "" {
		m.finishAttemptLocked(b)
		return
	}
	b.dead = dead
	if err := m.unmountLocked(b); err != nil {
		m.log.Warn("mount of an earlier life stays", "dir", b.fsDir(), "err", err)
	}
}

// adoptMountLocked takes one mount over. It returns why that is not possible.
func (m *mountings) adoptMountLocked(b *binding, on mounts.Mount) (dead string) {
	way, err := m.exports.adopt(on, b.number(), cache.For(b.file, b.saved.Source.Repo))
	if err != nil {
		return err.Error()
	}
	if way == "" {
		b.file.Pin()
		b.pinned++
		b.how = mountedDirect
		return ""
	}
	b.how, b.ways = mountedLazy, append(b.ways, way)
	return ""
}

// restoreBinding mounts a binding's layer unless it is mounted: at once if its image is here, in
// the background otherwise. One that nobody has asked for since it was made anew waits until somebody does.
func (m *mountings) restoreBinding(b *binding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.saved.Quarantined != "", b.saved.Unasked, b.how != notMounted:
		return
	case b.file == nil:
		m.startAttemptLocked(b)
		return
	}
	if err := m.mountLocked(b); err != nil {
		m.log.Error("layer not mounted", "key", b.saved.Name, "digest", b.saved.Source.Descriptor.Digest, "err", err)
		return // the next Mounts tries again
	}
	m.finishAttemptLocked(b)
}

// finishAttemptLocked notes that the binding is mounted.
func (m *mountings) finishAttemptLocked(b *binding) {
	b.attempt = &attempt{done: make(chan struct{})}
	close(b.attempt.done)
}
