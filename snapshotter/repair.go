package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

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
// uses the layer. The image is named as status names it. The error says what stays broken.
func (m *mending) Repair(ctx context.Context, image string, release bool, tell func(Repaired), removed func(ImageName)) error {
	var all, gone []*binding
	for _, b := range m.bindings.all() {
		if b.source().Image == image {
			all = append(all, b)
		}
	}
	if len(all) == 0 {
		return noLazyLayer(image)
	}
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
	err := f.PrefetchAll(ctx)
	if err == nil {
		err = f.Verify(ctx, b.source().DiffID)
	}
	if errors.Is(err, blob.ErrBytes) {
		return m.doubting.repair(ctx, b, err)
	}
	if layers.IsGone(err) {
		return &goneError{err}
	}
	return err
}
