package cache

import (
	"context"
	"errors"
)

// ErrMissing says that bytes are not here.
var ErrMissing = errors.New("not in the cache")

// Peek reads what is here, without fetching and without counting as a reader. It fails if anything of
// the range is missing.
func (f *File) Peek(p []byte, off int64) (int, error) {
	f.punch.RLock()
	defer f.punch.RUnlock()
	lo, hi := f.t.overlapping(off, int64(len(p)))
	for i := lo; i < hi; i++ {
		if !f.has(uint32(i)) {
			return 0, ErrMissing
		}
	}
	return f.img.ReadAt(p, off)
}

// PrefetchPieces is Prefetch of a list.
func (c *Cache) PrefetchPieces(ctx context.Context, pieces []Piece) error {
	return c.Prefetch(ctx, func(int64) []Piece {
		some := pieces
		pieces = nil
		return some
	})
}
