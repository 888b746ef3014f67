package layers

import (
	"context"
	"fmt"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/internal/memory"
)

// What the decoding of a layer takes of memory besides its tree, in bytes.
const (
	indexMemory  = 8 << 20  // the end of a blob, and the decoder of its table
	importMemory = 16 << 20 // requests under way, pieces, chunks, and a buffer of data
	zstdMemory   = 16 << 20 // more for a window and its history
)

// A decoder decodes layers within the memory that all of them share.
type decoder struct {
	memory *memory.Budget // nil for no end
	limits layout.Limits
	proofs *Proofs
}

func importMemoryOf(c blob.Codec) int64 {
	if c == blob.Zstd {
		return importMemory + zstdMemory
	}
	return importMemory
}

// inMemory decodes a layer once there is memory for it, and asks for more as the tree grows. The share is held until an image
// was made of the layer, or nobody wants it any more. What waits for the layers below is kept: nobody waits for its end,
// because that may be behind whoever waits. A layer that waits for memory is proven meanwhile.
func (d *decoder) inMemory(
	ctx context.Context, o *Opening, base int64, decode func(layout.Limits) (*Tree, error),
) (*Tree, error) {
	share, ok := d.memory.Try(userOf(o.src.Repo), base)
	if !ok {
		waiting, done := d.proofs.meanwhile(ctx, o)
		var err error
		share, err = d.memory.Acquire(waiting, userOf(o.src.Repo), base)
		if done(); err != nil {
			return nil, fmt.Errorf("decode layer: %w", err)
		}
	}
	limits := d.limits
	limits.Grow = func(n int64) error { return share.Grow(ctx, n) }
	x, err := decode(limits)
	if err == nil && x == nil {
		share.Release()
		return nil, nil
	}
	if err == nil && len(x.layout.Implicit) > 0 {
		if err = share.Keep(x.layout.Kept()); err != nil {
			if im := x.take(); im != nil {
				im.Stop(true)
			}
		}
	}
	if err != nil {
		share.Release()
		return nil, err
	}
	x.share = share
	return x, nil
}
