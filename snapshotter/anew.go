package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A snapshot whose bytes turned out wrong, or of whose layer the record was lost, is quarantined. Whoever mounts it has it filled anew:
// from whatever images of its namespace say that it is made of, read whole, without any table that may have lied. Nothing of that is shown
// before its diffID is right, which the chainID fixes, so nobody gains by claiming it.

// anewFirst and anewMost are the waits before whole layers are read again that were wrong.
const anewFirst, anewMost = time.Minute, time.Hour

// A wrongAnew is what is known of a layer that was filled anew in vain.
type wrongAnew struct {
	waits backoff.Backoff
	until time.Time
	err   error
}

// filled is what a snapshot is filled with: an image, or what its layer was unpacked into.
type filled struct {
	src      layers.Source
	file     *cache.File
	unpacked *unpackedUsage
}

// mountAnew fills a binding anew, within its attempt, and mounts it: one that is quarantined, or whose table lies.
func (m *mountings) mountAnew(ctx context.Context, b *binding, why string) error {
	done, err := b.beginDeciding(ctx)
	if err != nil {
		return err
	}
	defer done()
	b.mu.Lock()
	wrong := b.wrong
	b.mu.Unlock()
	if wrong != nil && time.Now().Before(wrong.until) {
		return wrong.err
	}
	with, err := m.mending.anew(ctx, b, why)
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		if errors.Is(err, cache.ErrDiffID) { // it was read whole for nothing
			if b.wrong == nil {
				b.wrong = &wrongAnew{waits: backoff.Backoff{First: anewFirst, Max: anewMost}}
			}
			b.wrong.until, b.wrong.err = time.Now().Add(b.wrong.waits.Next()), err
		}
		return err
	}
	m.log.Warn("layer is filled anew", "key", b.name(), "digest", with.src.Descriptor.Digest, "image", with.src.Image, "was", why)
	if err := m.mountAs(b, func() error {
		var err error
		if b.how != notMounted { // it stayed so; else somebody may wait at its gate
			under := b.attempt
			err = m.unmountLocked(b)
			b.attempt = under
		}
		return errors.Join(err, m.mending.fillLocked(b, with))
	}); err != nil {
		return err
	}
	return m.mending.rebuildOn(b)
}

// fillLocked notes what a binding that was wrong is filled with.
func (m *mending) fillLocked(b *binding, with filled) error {
	if b.saved.Quarantined != "" || b.doubt != nil || b.missed != nil {
		told := &b.saved.Source
		if told.Image == "" { // its record was lost
			told = &with.src
		}
		m.telling.image(EventMended, told, "it was filled anew")
	}
	b.wrong, b.doubt, b.gone, b.missed, b.saved.Quarantined = nil, nil, nil, nil, ""
	return b.noteLocked(with)
}

// noteLocked notes what a binding has, and that somebody has asked for it.
func (b *binding) noteLocked(with filled) error {
	b.file, b.key = with.file, ""
	b.saved.Source, b.saved.CacheID, b.saved.Unpacked, b.saved.Unasked = with.src, "", with.unpacked, false
	if with.file != nil {
		b.saved.CacheID = with.file.ID()
	}
	return b.saved.write(b.dir)
}

// fillAnew replaces what a quarantined binding has by what its repository, or another one, has now.
func (m *mending) fillAnew(ctx context.Context, b *binding, why string) error {
	done, err := b.beginDeciding(ctx)
	if err != nil {
		return err
	}
	defer done()
	with, err := m.anew(ctx, b, why)
	if err != nil {
		return err
	}
	return m.refill(b, with)
}

// anew returns what a binding can be filled with, proven by its diffID.
func (m *mending) anew(ctx context.Context, b *binding, why string) (with filled, err error) {
	if err := m.findParents(ctx, b); err != nil {
		return with, err
	}
	all, err := m.madeOf(ctx, b)
	if err == nil && len(all) == 0 {
		return with, fmt.Errorf("%s; and no image of containerd says what it is made of", why)
	}
	m.dropUnused(b.image()) // what is wrong
	return m.firstOf(ctx, b, all, []error{errors.New(why), err}, err == nil)
}

// fill reads a layer whole, into an image, or, where none can be made of it, into a directory.
func (m *mending) fill(ctx context.Context, b *binding, src layers.Source) (filled, error) {
	f, err := m.prove(ctx, b, &src)
	if err == nil {
		return filled{src: src, file: f}, nil
	}
	m.dropUnused(f)
	if !layers.MayUnpack(err) || layers.IsGone(err) {
		return filled{}, err
	}
	takes, err := m.mountings.unpackInto(ctx, b, &src, err)
	return filled{src: src, unpacked: takes}, err
}

// madeOf returns the layers, to be read whole, by which images of containerd say that a binding's snapshot can be made: first its own,
// if that is known.
func (m *mending) madeOf(ctx context.Context, b *binding) (all []layers.Source, err error) {
	chains, err := m.bindings.chainsOf(ctx, []*binding{b})
	if err != nil {
		return nil, err
	}
	ours := b.source()
	known := map[string]bool{}
	add := func(src layers.Source) {
		src.Whole = true
		if key := m.layers.KeyOf(&src); !known[key] {
			known[key] = true
			all = append(all, src)
		}
	}
	if ours.Descriptor.Digest != "" && ours.DiffID != "" {
		add(ours)
	}
	spaces := namespacesOf(ctx, &ours)
	if ours.Namespace == "" && m.opts.Metadata != nil { // its record was lost
		if spaces, err = m.namespacesWith(ctx, b.name()); err != nil {
			return all, err
		}
	}
	for _, ns := range spaces {
		images, err := m.images.Known(namespaces.WithNamespace(ctx, ns))
		if err != nil {
			return all, fmt.Errorf("which images of namespace %s have layer %s: %w", ns, chains[b], err)
		}
		for i := range images {
			if at := slices.Index(chainIDsOf(&images[i]), chains[b]); at >= 0 {
				add(images[i].Layers[at])
			}
		}
	}
	if len(all) > 0 && ours.Descriptor.Digest == "" { // so that status, and a release, can name it
		b.mu.Lock()
		b.saved.Source, b.key = all[0], ""
		b.mu.Unlock()
	}
	return all, nil
}

// namespacesOf returns the namespaces whose images may say what a layer's snapshot is made of: the one that claimed it, and the request's.
// Those of others may not: whoever claims the chainID of a private layer would be shown it, by the credentials of somebody else's image.
func namespacesOf(ctx context.Context, ours *layers.Source) (all []string) {
	asked, _ := namespaces.Namespace(ctx)
	for _, ns := range []string{ours.Namespace, asked} {
		if ns != "" && !slices.Contains(all, ns) {
			all = append(all, ns)
		}
	}
	return all
}

// namespacesWith returns the namespaces in which containerd has a snapshot of a layer.
func (m *mending) namespacesWith(ctx context.Context, name string) (all []string, err error) {
	spaces, err := m.opts.Metadata.Namespaces(ctx)
	if err != nil {
		return nil, fmt.Errorf("namespaces of containerd: %w", err)
	}
	for _, ns := range spaces {
		found, err := m.asking.of(namespaces.WithNamespace(ctx, ns), name)
		if err != nil {
			return nil, err
		}
		if _, has := found[name]; has {
			all = append(all, ns)
		}
	}
	return all, nil
}

// findParents has a binding know again what it lies on, if its record was lost.
func (m *mending) findParents(ctx context.Context, b *binding) error {
	var ids []string
	err := m.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err := storage.GetInfo(ctx, b.name())
		for err == nil && info.Parent != "" {
			var id string
			id, info, _, err = storage.GetInfo(ctx, info.Parent)
			ids = append(ids, id)
		}
		return err
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.saved.Parents = ids
	}
	return err
}

// rebuildOn has those look again that were built on a binding's layer: their directories may have taken attributes from it.
func (m *mending) rebuildOn(b *binding) (err error) {
	for _, child := range m.bindings.all() {
		child.mu.Lock()
		built := slices.Contains(child.saved.Parents, b.id) && cache.ParseName(child.saved.CacheID).Below != ""
		child.mu.Unlock()
		if !built {
			continue
		}
		child.endAttempt()
		child.mu.Lock()
		err = errors.Join(err, m.mountings.makeWayLocked(child))
		child.saved.CacheID, child.file = "", nil
		err = errors.Join(err, child.saved.write(child.dir))
		child.mu.Unlock()
	}
	return err
}
