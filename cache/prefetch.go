package cache

import (
	"context"

	"github.com/remora-storage/remora/cache/fetch"
)

// A Piece is a unit of a file that is to be made present.
type Piece struct {
	File *File
	Unit uint32
}

// Prefetch makes pieces present behind every reader that waits. next returns the pieces that come
// next, about n packed bytes of them, or none at the end. Pieces of one answer that are neighbours
// in their blob, or nearly so, are fetched by one request; what comes in an earlier answer is asked
// for earlier. Prefetch returns when all are here, with the errors of those that are not, or soon
// after ctx ends.
func (c *Cache) Prefetch(ctx context.Context, next func(n int64) []Piece) error {
	return c.fetches.Prefetch(ctx, func(n int64) []fetch.Piece {
		some := next(n)
		pieces := make([]fetch.Piece, len(some))
		for i, p := range some {
			pieces[i] = fetch.Piece{Of: p.File.fetch, Unit: p.Unit}
		}
		return pieces
	})
}

// PrefetchPieces is Prefetch of a list.
func (c *Cache) PrefetchPieces(ctx context.Context, pieces []Piece) error {
	return c.Prefetch(ctx, func(int64) []Piece {
		some := pieces
		pieces = nil
		return some
	})
}
