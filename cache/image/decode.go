package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
)

// cut is how an image's blob is cut into units.
type cut struct {
	t      *Table
	points *points // where units begin; nil but for blob.Spans
}

// plainBytes is Image.PlainBytes.
func (c *cut) plainBytes(unit uint32) (n int64, packedToo bool) {
	n = c.t.plainEnd(unit)
	if c.points != nil {
		return max(n, c.points.plain(unit)+inflate.Window), true
	}
	// What is kept of the rest without asking, and was before it grew.
	return n + 2*min(blob.FreeRest, max(c.t.Codec.MaxPlain(c.t.Unit(unit).Len)-n, 0)), false
}

// unpack decodes a unit.
func (c *cut) unpack(unit uint32, packed io.Reader, also io.Writer, room blob.Room) (blob.Unpacked, error) {
	need := c.t.plainEnd(unit)
	if c.points == nil {
		return blob.Unpack(c.t.Codec, packed, need, also, room)
	}
	u := c.t.Unit(unit)
	at, n, err := c.points.at(unit, u.Off)
	if err != nil {
		return blob.Unpacked{}, err
	}
	return blob.UnpackSpan(at, n, packed, u.Len, need, also)
}

// PlainBytes returns how many plain bytes of a unit are in memory while it is decoded, and whether its packed bytes are too,
// however many. What the decoder takes, and what blob.Room.More is asked for, are besides.
func (m *Image) PlainBytes(unit uint32) (n int64, packedToo bool) { return m.cut.plainBytes(unit) }

// UnitBytes returns how many bytes a unit's extents have together: what is in memory while it is copied from elsewhere.
func (t *Table) UnitBytes(unit uint32) (total int64) {
	n, at := t.UnitExtents(unit)
	for k := range n {
		e := t.Extent(at(k))
		total += int64(e.Len)
	}
	return total
}

// plainEnd returns where in a decoded unit its last extent ends.
func (t *Table) plainEnd(unit uint32) (end int64) {
	n, at := t.UnitExtents(unit)
	for k := range n {
		e := t.Extent(at(k))
		end = max(end, int64(e.Inner)+int64(e.Len))
	}
	return end
}

// Decode decodes a unit, checks its extents' digests and keeps what else is in it. It returns the plain bytes up to the last
// extent's end; all of them go to also, if that is not nil. An error is that of packed, or wraps blob.ErrBytes.
func (m *Image) Decode(unit uint32, packed io.Reader, also io.Writer, room blob.Room) ([]byte, error) {
	got, err := m.cut.unpack(unit, packed, also, room)
	if err != nil {
		var source *blob.SourceError
		if errors.As(err, &source) {
			return nil, source.Err
		}
		return nil, fmt.Errorf("%w: decode: %w", blob.ErrBytes, err)
	}
	n, at := m.table.UnitExtents(unit)
	for k := range n {
		e := m.table.Extent(at(k))
		if sha256.Sum256(got.Plain[e.Inner:e.Inner+e.Len]) != e.Digest {
			return nil, fmt.Errorf("%w: extent at %d of the image has another digest", blob.ErrBytes, e.Off)
		}
	}
	if got.Whole && !m.residue.Has(unit) {
		if around, ok := m.table.gaps(unit, got.Plain, got.Rest, room.More); ok {
			m.residue.keep(unit, around, false)
		}
	}
	return got.Plain, nil
}

// gaps returns what plain+rest holds besides a unit's extents, in order. It is not ok if there is no room for that, packed too, or if
// it is more than a record may have.
func (t *Table) gaps(unit uint32, plain, rest []byte, more func(int64) bool) (around []byte, ok bool) {
	n, at := t.UnitExtents(unit)
	between, pos := int64(0), uint32(0)
	for k := range n {
		e := t.Extent(at(k))
		between += int64(max(e.Inner, pos) - pos)
		pos = max(pos, e.Inner+e.Len)
	}
	total := between + int64(len(rest))
	takes := 2 * total // packed, and what that was before it grew
	if between > 0 {
		takes += total
	}
	if total > residuePlain || takes > blob.FreeRest && more != nil && !more(takes) {
		return nil, false
	}
	if between == 0 {
		return rest, true
	}
	around, pos = make([]byte, 0, total), 0
	for k := range n {
		e := t.Extent(at(k))
		around = append(around, plain[pos:max(e.Inner, pos)]...)
		pos = max(pos, e.Inner+e.Len)
	}
	return append(around, rest...), true
}
