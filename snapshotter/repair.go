package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// Repaired is what became of a layer.
type Repaired struct {
	Digest digest.Digest
	Reason string // why it is not whole; "" if it is
	Gone   bool   // nobody has it any more
}

// Repair makes the layers of an image whole, from wherever they are: those that could not be opened, or turned out wrong, and those that
// are incomplete. It tells of each. With release, the images that have a layer which nobody has any more are removed, unless something
// uses the layer. The image is named as status or containerd names it. The error says what stays broken.
func (m *mending) Repair(ctx context.Context, image string, release bool, tell func(Repaired), removed func(ImageName)) error {
	all, err := m.layersOf(ctx, image)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return noLazyLayer(image)
	}
	var gone []*binding
	m.layers.Proofs.Forgive()
	var errs []error
	for _, b := range all {
		one := Repaired{Digest: b.source().Descriptor.Digest}
		if err := m.repair(ctx, b); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			one.Reason, one.Gone = err.Error(), errors.As(err, new(*goneError))
			if one.Gone && release && m.opts.Releases != nil {
				gone = append(gone, b)
			} else {
				errs = append(errs, fmt.Errorf("layer %s: %w", one.Digest, err))
			}
		}
		tell(one)
	}
	for _, b := range gone {
		others, err := m.elsewhere(ctx, b)
		if err == nil {
			err = m.releasing.release(ctx, b, others, true, removed)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("layer %s: %w", b.source().Descriptor.Digest, err))
		}
	}
	return errors.Join(errs...)
}

// layersOf returns the layers that an image claimed, and those that it shares with one that claimed them.
func (m *mending) layersOf(ctx context.Context, image string) (all []*binding, err error) {
	has := map[digest.Digest]bool{}
	for _, b := range m.bindings.all() {
		chains, err := m.bindings.chainsOf(ctx, []*binding{b})
		if errdefs.IsNotFound(err) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		chain := chains[b]
		if _, known := has[chain]; !known && m.opts.Releases != nil {
			uses, err := m.opts.Releases.Using(ctx, chain)
			if err != nil {
				return nil, fmt.Errorf("which images have layer %s: %w", chain, err)
			}
			has[chain] = slices.ContainsFunc(uses, func(use Use) bool { return use.Name == image && use.Unread == "" })
		}
		if has[chain] || b.source().Image == image {
			all = append(all, b)
		}
	}
	return all, nil
}

func (m *mending) repair(ctx context.Context, b *binding) error {
	if why := b.quarantined(); why != "" {
		return m.fillAnew(ctx, b, why)
	}
	if err := m.mountings.ensure(ctx, b); err != nil {
		return err
	}
	f := b.image()
	if f == nil { // it was unpacked
		return nil
	}
	src := b.source()
	f = cache.For(f, src.Repo)
	err := f.PrefetchAll(ctx)
	if err == nil {
		err = f.Verify(ctx, src.DiffID)
	}
	if errors.Is(err, blob.ErrBytes) {
		return m.doubting.repair(ctx, b, err)
	}
	if layers.IsGone(err) {
		return &goneError{err}
	}
	return err
}
