package erofs

import (
	"fmt"
	"math"

	"github.com/remora-storage/remora/cache"
)

// Spec describes the image to the cache. tail is what is known of the blob's last unit, packed,
// or nil.
func (p *Plan) Spec(tail []byte) (cache.Spec, error) {
	s := cache.Spec{
		ImageSize: p.Size, MetaSize: p.MetaSize, Meta: p, Tail: tail,
		Codec: p.l.Codec, Units: p.l.Units,
		Extents: make([]cache.Extent, 0, len(p.l.Extents)),
		Points:  p.l.Points, PlainSize: p.l.PlainSize,
	}
	for i := range p.l.Inodes {
		in := &p.l.Inodes[i]
		for _, e := range p.l.Extents[in.FirstExtent : in.FirstExtent+in.NumExtents] {
			if e.Len > math.MaxUint32 || e.Inner > math.MaxUint32 {
				return s, fmt.Errorf("%w: extent of %d bytes at %d in its unit", ErrTooLarge, e.Len, e.Inner)
			}
			s.Extents = append(s.Extents, cache.Extent{
				Off: p.at[i].data + e.FileOff, Len: uint32(e.Len), Unit: e.Unit, Inner: uint32(e.Inner), Digest: e.Digest,
			})
		}
	}
	return s, nil
}
