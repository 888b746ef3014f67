package blockdev

import "context"

// readOnly is a Device that is no Writer, whatever is below.
type readOnly struct{ d Device }

// ReadOnly returns d without the ways to change it.
func ReadOnly(d Device) Device { return readOnly{d} }

func (r readOnly) Size() int64    { return r.d.Size() }
func (r readOnly) BlockSize() int { return r.d.BlockSize() }

func (r readOnly) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return r.d.ReadAt(ctx, p, off)
}

func (r readOnly) Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error {
	return Extents(ctx, r.d, off, n, yield)
}
