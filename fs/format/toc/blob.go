package toc

import (
	"context"
	"fmt"
	"io"
)

// A Blob is read by range. Open returns exactly n bytes from off, or an error.
type Blob interface {
	Open(ctx context.Context, off, n int64) (io.ReadCloser, error)
	Size() int64
}

// ReadRange reads a range of a blob that has, or may have, its table.
func ReadRange(ctx context.Context, blob Blob, off, n int64) ([]byte, error) {
	r, err := blob.Open(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("read table of contents: %w", err)
	}
	defer r.Close()
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return nil, fmt.Errorf("read table of contents: %w", err)
	}
	return p, nil
}
