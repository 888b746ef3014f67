package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A layer that was claimed must come from somewhere: nobody else downloads it any more. Where its own repository no longer gives it,
// because the blob was deleted, access was withdrawn or other bytes are served, whatever else is known to have it is asked: containerd's
// content store, and the repositories of other images that containerd says are made of the same layer.

// contentOf returns what a binding is to show: the image that its own source gives, or what that is unpacked into where no image can be
// made of it; and if that fails, what one of elsewhere gives.
func (m *mending) contentOf(ctx context.Context, b *binding, saved *savedBinding) (with filled, err error) {
	with.src = saved.Source
	with.file, err = m.mountings.image(ctx, b, saved)
	if layers.MayUnpack(err) && ctx.Err() == nil {
		with.unpacked, err = m.mountings.unpackInto(ctx, b, &with.src, err)
	}
	if err == nil || ctx.Err() != nil {
		return with, err
	}
	others, lerr := m.elsewhere(ctx, b)
	for i := range others {
		m.log.Warn("layer is asked for elsewhere", "key", saved.Name, "digest", others[i].Descriptor.Digest,
			"repository", others[i].Repo, "err", err)
	}
	with, err = m.firstOf(ctx, b, others, []error{err, lerr}, isHopeless(err) && lerr == nil)
	if err == nil && !b.isMissed() { // else its being back is told
		m.telling.image(EventMended, &saved.Source, "it comes from "+with.src.Image)
	}
	return with, err
}

// firstOf returns what a binding can be filled with from the first source whose bytes are proven to be what the binding promises. The
// error has those of all, and others that were there before; if none of them will ever give the layer, and so it was before, it is a
// goneError.
func (m *mending) firstOf(
	ctx context.Context, b *binding, all []layers.Source, before []error, gone bool,
) (with filled, err error) {
	errs, ours := before, b.source().Repo
	for i := range all {
		var err error
		if all[i].Repo != ours { // whoever needs the layer asks its own repository in any case
			err = m.layers.Proofs.Failing(all[i].Repo)
		}
		if err == nil {
			if with, err = m.fill(ctx, b, all[i]); err == nil {
				return with, nil
			}
		}
		if ctx.Err() != nil {
			return filled{}, context.Cause(ctx)
		}
		errs, gone = append(errs, fmt.Errorf("as %s has it: %w", all[i].Image, err)), gone && isHopeless(err)
	}
	if err = errors.Join(errs...); gone {
		err = &goneError{err}
	}
	return filled{}, err
}

// isHopeless reports whether an error says that a place has not the layer, or one that can be shown in no way within [limits].
func isHopeless(err error) bool { return layers.IsGone(err) || layers.IsBeyond(err) }

// elsewhere returns the layers, other than the binding's own, by which images of containerd say that the binding's snapshot can be
// made.
func (m *mending) elsewhere(ctx context.Context, b *binding) (others []layers.Source, err error) {
	chains, err := m.bindings.chainsOf(ctx, []*binding{b})
	if err != nil {
		return nil, err
	}
	ours := b.source()
	known := map[string]bool{m.layers.KeyOf(&ours): true}
	for _, ns := range namespacesOf(ctx, &ours) {
		claims, err := m.images.Claims(namespaces.WithNamespace(ctx, ns), map[digest.Digest]bool{chains[b]: true})
		if err != nil {
			return others, fmt.Errorf("which images of namespace %s have layer %s: %w", ns, ours.Descriptor.Digest, err)
		}
		for _, src := range claims[chains[b]] {
			if samePlace(src.Repo, ours.Repo) {
				if src.Descriptor.Digest == ours.Descriptor.Digest {
					continue
				}
				src.Repo = ours.Repo // packed another way, and a record of containerd's lacks the port
			}
			if key := m.layers.KeyOf(&src); !known[key] {
				known[key] = true
				others = append(others, src)
			}
		}
	}
	return others, nil
}

// samePlace reports whether two repositories may be one: containerd notes where a blob came from without the port, so one record may
// stand for a repository on each port that is known. That says nothing of another one's having the layer.
func samePlace(a, b registry.Repository) bool {
	return a.Hostname() == b.Hostname() && a.Path == b.Path
}

// placesOf returns where the blob that an image in the cache was made of may be, beyond the repositories that it is read from:
// what containerd's content store has, and the repositories of others that have it.
func (m *mending) placesOf(ctx context.Context, image string) (all []layers.Source) {
	for _, b := range m.bindings.all() {
		if b.cacheID() != image {
			continue
		}
		ours := b.source()
		others, err := m.elsewhere(ctx, b)
		if err != nil {
			m.log.Warn("where else a layer is was not found out", "digest", ours.Descriptor.Digest, "err", err)
		}
		if m.layers.Places.Stored(ctx, &ours) {
			all = append(all, ours)
		}
		all = append(all, slices.DeleteFunc(others, func(o layers.Source) bool { return o.Descriptor.Digest != ours.Descriptor.Digest })...)
	}
	return all
}
