package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// mountings mount bindings' layers on their directories, and take them off.
type mountings struct {
	*base
	bindings  *bindings
	gating    *gating
	mending   *mending
	releasing *releasing

	// mounting is held shared by who mounts a layer or tells a container its mounts, and exclusively by Detach. It is taken
	// before every other lock.
	mounting sync.RWMutex
}

// ensure returns when the binding's layer is mounted. Callers share an attempt; one that failed
// is made again by the next caller.
func (m *mountings) ensure(ctx context.Context, b *binding) error {
	a := m.startAttempt(b)
	select {
	case <-a.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", b.saved.Source.Describe(), context.Cause(ctx))
	}
	if a.err != nil {
		return a.err
	}
	m.goDirect(b)
	return nil
}

// startAttempt returns the attempt that is under way or has succeeded, or starts one.
func (m *mountings) startAttempt(b *binding) *attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	return m.startAttemptLocked(b)
}

func (m *mountings) startAttemptLocked(b *binding) *attempt {
	if b.attempt != nil {
		select {
		case <-b.attempt.done:
			if b.attempt.err == nil {
				return b.attempt
			}
		default:
			return b.attempt
		}
	}
	a := &attempt{done: make(chan struct{})}
	b.attempt = a
	ctx, cancel := context.WithCancel(m.life)
	a.stop = cancel
	m.started.Go(func() {
		defer close(a.done)
		defer cancel()
		a.err = m.mountBinding(ctx, b)
		m.releasing.noteAttempt(b, a.err)
		if a.err != nil {
			a.err = fmt.Errorf("%s: %w", b.saved.Source.Describe(), a.err)
			m.log.Error("layer not mounted", "key", b.saved.Name, "digest", b.saved.Source.Descriptor.Digest, "err", a.err)
		}
	})
	return a
}

// mountBinding finds or builds the layer's image and mounts it.
func (m *mountings) mountBinding(ctx context.Context, b *binding) error {
	b.mu.Lock()
	saved := b.saved
	b.mu.Unlock()
	if saved.Quarantined != "" {
		if err := m.mountAnew(ctx, b, saved.Quarantined); err != nil {
			return fmt.Errorf("quarantined: %w", err)
		}
		return nil
	}
	if saved.Unpacked != nil {
		return m.mountAs(b, func() error { return nil })
	}
	with, err := m.mending.contentOf(ctx, b, &saved)
	if err != nil {
		return err
	}
	if with.unpacked != nil {
		return m.mountAs(b, func() error { return b.noteLocked(with) })
	}
	f, src := with.file, with.src
	err = m.mending.checkDiffID(ctx, b, f)
	if errors.Is(err, blob.ErrBytes) && !src.Whole {
		return m.mountAnew(ctx, b, doubtWhy)
	}
	if err != nil {
		return err
	}
	return m.mountAs(b, func() error {
		m.starts.Found(&src, f)
		if b.saved.CacheID == f.ID() && b.saved.Source.Repo == src.Repo {
			b.file = f // which is on disk
			return nil
		}
		return b.noteLocked(with)
	})
}

// mountAs mounts a binding's layer once note, which has the binding's lock, has noted what it is; nothing of a snapshot that was removed
// meanwhile.
func (m *mountings) mountAs(b *binding, note func() error) error {
	m.mounting.RLock()
	defer m.mounting.RUnlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.removed {
		return errors.New("snapshot was removed")
	}
	if err := note(); err != nil {
		return err
	}
	m.changed.Store(true)
	return m.mountLocked(b)
}

// image returns the layer's image: from the cache, or built from the index.
func (m *mountings) image(ctx context.Context, b *binding, saved *savedBinding) (*cache.File, error) {
	if saved.CacheID != "" {
		f, err := m.layers.File(saved.CacheID, &saved.Source)
		if err == nil {
			return m.layers.Sources.Add(f, &saved.Source), nil
		}
		m.log.Warn("image not in the cache, opening the layer again", "digest", saved.Source.Descriptor.Digest, "err", err)
	}
	f, tree, err := m.layers.Image(ctx, &saved.Source)
	if err != nil || f != nil {
		return f, err
	}
	below, err := m.below(ctx, saved.Parents)
	if err != nil {
		return nil, err
	}
	return m.layers.BuildOn(ctx, &saved.Source, tree, below)
}

// mountLocked mounts b.file on the binding's directory, directly if it is complete and checked, or what the layer was unpacked into.
func (m *mountings) mountLocked(b *binding) error {
	if b.how != notMounted {
		return nil
	}
	if b.saved.Unpacked != nil {
		return m.mountUnpackedLocked(b)
	}
	if b.file.Verified(b.saved.Source.DiffID) && m.mountDirectLocked(b) == nil {
		return nil
	}
	way, reason := m.wayFor(b)
	if way == "" {
		return fmt.Errorf("this kernel cannot mount an incomplete image: %s", reason)
	}
	began := time.Now()
	err := m.exports.mount(way, b.number(), cache.For(b.file, b.saved.Source.Repo), b.fsDir())
	m.layers.Tracer.Ended(began, layers.Span{Kind: "mount", Digest: b.saved.Source.Descriptor.Digest, What: string(way), Err: err})
	if err != nil {
		return err
	}
	m.log.Debug("layer mounted", "digest", b.saved.Source.Descriptor.Digest, "backend", way, "reason", reason)
	b.how, b.ways = mountedLazy, append(b.ways, way)
	return nil
}

// mountDirectLocked mounts the complete image file on top of whatever is on the directory, so
// that there is no moment without the layer.
func (m *mountings) mountDirectLocked(b *binding) error {
	if !b.file.PinIfComplete() {
		return errors.New("image is not complete")
	}
	err := m.exports.complete(b.file)
	if err == nil && b.how == mountedLazy && b.way() == blockdev.Precontent {
		// The image file itself is mounted already, and nothing of it is missing.
		b.how, b.pinned = mountedDirect, b.pinned+1
		return nil
	}
	if err == nil {
		err = m.kernel.MountImage(b.file.Path(), b.fsDir(), !m.caps.Direct)
	}
	if err != nil {
		b.file.Unpin()
		return err
	}
	b.how, b.pinned = mountedDirect, b.pinned+1
	return nil
}

// goDirect lets the kernel read a layer itself once that has become complete and its diffID is
// right. Containers that run keep what they have.
func (m *mountings) goDirect(b *binding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.how != mountedLazy || b.removed || !b.file.Verified(b.saved.Source.DiffID) || !b.file.Complete() {
		return
	}
	if err := m.mountDirectLocked(b); err != nil {
		m.log.Warn("complete layer stays behind its export", "digest", b.saved.Source.Descriptor.Digest, "err", err)
	}
}

// unmount takes a binding's layer off its directory.
func (m *mountings) unmount(b *binding) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return m.unmountLocked(b)
}

func (m *mountings) unmountLocked(b *binding) error {
	return errors.Join(m.gating.dropLocked(b), m.takeOffLocked(b))
}

// makeWayLocked is unmountLocked of a layer in whose place another one comes: who waits at its gate waits for that.
func (m *mountings) makeWayLocked(b *binding) error {
	if b.shown {
		return m.unmountLocked(b)
	}
	return m.takeOffLocked(b)
}

func (m *mountings) takeOffLocked(b *binding) error {
	err := m.kernel.Unmount(b.fsDir())
	for ; b.pinned > 0; b.pinned-- {
		b.file.Unpin()
	}
	for _, way := range b.ways {
		m.exports.release(way, b.number())
	}
	b.how, b.ways, b.attempt = notMounted, nil, nil
	return err
}
