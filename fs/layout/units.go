package layout

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/remora-storage/remora/cache/blob"
)

// checkUnits refuses units that cost more than their bytes are worth. Whoever reads a byte has its unit decoded up to the last
// extent, and each of the extents hashed and written. So in each unit
//
//   - no more than blob.MaxUnit bytes lie up to the end of the last extent, or in all extents together,
//   - extents that share a byte are the same bytes in several files, which no writer that we know makes and some might,
//   - nothing lies where the packed bytes cannot lead.
func (b *Builder) checkUnits(l *Layout) error {
	if l.Codec == blob.Whole {
		return nil // it is read once, from start to end
	}
	limit := max(blob.MaxUnit, b.limits.Extent) // an operator may ask for larger ones
	first := make([]uint32, len(l.Units)+1)     // in of, by unit
	for _, e := range l.Extents {
		first[e.Unit+1]++
	}
	for i := range l.Units {
		first[i+1] += first[i]
	}
	of := make([]*Extent, len(l.Extents))
	next := slices.Clone(first)
	for i := range l.Extents {
		e := &l.Extents[i]
		of[next[e.Unit]] = e
		next[e.Unit]++
	}
	for i, u := range l.Units {
		extents := of[first[i]:first[i+1]]
		slices.SortFunc(extents, func(a, b *Extent) int { return cmp.Or(cmp.Compare(a.Inner, b.Inner), cmp.Compare(a.Len, b.Len)) })
		total, end := int64(0), int64(0)
		for k, e := range extents {
			if e.Inner < end && !(e.Inner == extents[k-1].Inner && e.Len == extents[k-1].Len && e.Digest == extents[k-1].Digest) {
				return fmt.Errorf("%w: extents at %d+%d and %d+%d of the unit at %d overlap", ErrInvalid,
					extents[k-1].Inner, extents[k-1].Len, e.Inner, e.Len, u.Off)
			}
			end = e.Inner + e.Len
			total += e.Len
			if end > limit || total > limit {
				return fmt.Errorf("%w: the unit at %d has %d bytes up to the end of an extent, %d in extents (limit %d)", ErrInvalid,
					u.Off, end, total, limit)
			}
		}
		if most := l.Codec.MaxPlain(u.Len); end > most {
			return fmt.Errorf("%w: the unit at %d of %d packed bytes cannot have %d plain ones (limit %d)", ErrInvalid,
				u.Off, u.Len, end, most)
		}
		if l.Codec == blob.Spans && u.Len > limit+limit/16 {
			return fmt.Errorf("%w: the unit at %d has %d packed bytes (limit %d)", ErrInvalid, u.Off, u.Len, limit+limit/16)
		}
	}
	return nil
}
