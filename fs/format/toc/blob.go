package toc

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/remora-storage/remora/fs/layout"
)

// A Blob is read by range. Open returns exactly n bytes from off, or an error.
type Blob interface {
	Open(ctx context.Context, off, n int64) (io.ReadCloser, error)
	Size() int64
}

// ReadRange reads a range of a blob that has, or may have, its table. Who calls it allows for the memory of the first few MiB; that of
// larger ranges is asked for.
func ReadRange(ctx context.Context, blob Blob, limits layout.Limits, off, n int64) ([]byte, error) {
	if n > firstRead {
		if err := limits.Ask(2 * n); err != nil { // it grows as it comes
			return nil, err
		}
	}
	r, err := blob.Open(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("read table of contents: %w", err)
	}
	defer r.Close()
	// A blob that says where its table is says how long it is. Memory is taken for bytes that have come.
	p := bytes.NewBuffer(make([]byte, 0, min(n, firstRead)))
	if _, err := p.ReadFrom(io.LimitReader(r, n)); err != nil {
		return nil, fmt.Errorf("read table of contents: %w", err)
	}
	if int64(p.Len()) < n {
		return nil, fmt.Errorf("read table of contents: %w", io.ErrUnexpectedEOF)
	}
	return p.Bytes(), nil
}

const firstRead = 4<<20 + bytes.MinRead
