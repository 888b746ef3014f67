package blockdev

import (
	"context"
	"fmt"
)

// Slice returns n bytes of d from off as a device, a Writer if d is one. Both are multiples of d's blocks.
func Slice(d Device, off, n int64) (Device, error) {
	if err := Check(d, off, n); err != nil {
		return nil, fmt.Errorf("slice: %w", err)
	}
	s := slice{d, off, n}
	if w, ok := d.(Writer); ok {
		return &sliceWriter{s, w}, nil
	}
	return &s, nil
}

type slice struct {
	d      Device
	off, n int64
}

func (s *slice) Size() int64    { return s.n }
func (s *slice) BlockSize() int { return s.d.BlockSize() }

func (s *slice) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off >= s.n {
		return 0, nil
	}
	return s.d.ReadAt(ctx, p[:min(int64(len(p)), s.n-off)], s.off+off)
}

func (s *slice) Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error {
	if err := Check(s, off, n); err != nil {
		return err
	}
	left := s.n - off
	return Extents(ctx, s.d, s.off+off, n, func(e Extent) bool {
		e.Len = min(e.Len, left)
		left -= e.Len
		return yield(e) && left > 0
	})
}

type sliceWriter struct {
	slice
	w Writer
}

func (s *sliceWriter) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := Check(s, off, int64(len(p))); err != nil {
		return err
	}
	return s.w.WriteAt(ctx, p, s.off+off)
}

func (s *sliceWriter) WriteSync(ctx context.Context, p []byte, off int64) error {
	if err := Check(s, off, int64(len(p))); err != nil {
		return err
	}
	return WriteSync(ctx, s.w, p, s.off+off)
}

func (s *sliceWriter) Flush(ctx context.Context) error { return s.w.Flush(ctx) }

func (s *sliceWriter) Trim(ctx context.Context, off, n int64) error {
	if err := Check(s, off, n); err != nil {
		return err
	}
	return Trim(ctx, s.w, s.off+off, n)
}

func (s *sliceWriter) WriteZeroes(ctx context.Context, off, n int64, how Zeroing) error {
	if err := Check(s, off, n); err != nil {
		return err
	}
	return WriteZeroes(ctx, s.w, s.off+off, n, how)
}
