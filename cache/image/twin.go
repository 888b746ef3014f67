package image

import (
	"crypto/sha256"
	"math"
	"slices"
	"sync"
)

// IsElsewhere reports whether extents with the digests of a unit's are in this image or another.
func (m *Image) IsElsewhere(unit uint32) bool {
	n, at := m.table.UnitExtents(unit)
	for k := range n {
		e := m.table.Extent(at(k))
		if !m.d.find(m, &e, func(*Image, Extent) bool { return true }) {
			return false
		}
	}
	return n > 0
}

// Elsewhere returns the bytes of a unit's extents, by extent, from extents with the same digests in this image or another; nil
// if they do not give all of it.
func (m *Image) Elsewhere(unit uint32) map[uint32][]byte {
	n, at := m.table.UnitExtents(unit)
	if n == 0 {
		return nil
	}
	parts := make(map[uint32][]byte, n)
	for k := range n {
		i := at(k)
		e := m.table.Extent(i)
		var b []byte
		if !m.d.find(m, &e, func(g *Image, x Extent) bool { b = g.bytesOf(&x); return b != nil }) {
			return nil
		}
		parts[i] = b
	}
	return parts
}

// find has take look at present extents with want's digest and length, first's before those of others that it may copy from, until
// it returns true. It reports whether take did.
func (d *Dir) find(first *Image, want *Extent, take func(*Image, Extent) bool) bool {
	if first.find(want, take) {
		return true
	}
	for _, m := range d.Images() {
		if d.lends(m, first, &want.Digest) && m.find(want, take) {
			return true
		}
	}
	return false
}

// lends reports whether an image lists extents with a digest, and another one may have them. That is asked once, and not for each of
// them: what may not be had must cost little, however often it is listed.
func (d *Dir) lends(from, to *Image, digest *[sha256.Size]byte) bool {
	return from != to && from.table.Has(digest) && d.copies(to, from)
}

func (m *Image) find(want *Extent, take func(*Image, Extent) bool) (found bool) {
	m.table.Find(&want.Digest, func(i uint32) bool {
		e := m.table.Extent(i)
		if e.Len != want.Len {
			return true
		}
		m.punch.RLock()
		defer m.punch.RUnlock()
		found = m.Has(i) && take(m, e)
		return !found
	})
	return found
}

// bytesOf returns the bytes of an extent that is present, or nil if the file is closed or failing: the extent is fetched instead.
func (m *Image) bytesOf(e *Extent) []byte {
	p := make([]byte, e.Len)
	if _, err := m.file.ReadAt(p, e.Off); err != nil {
		return nil
	}
	return p
}

// Guess supposes that a unit which was filled from elsewhere has between and behind its extents
// what its twin has: a unit of another image with the same extents, followed by the same. In a
// rebuilt layer that is so but for the headers that have changed, and fetching them all to know
// would be fetching the whole layer. The layer's diffID decides whether all guesses were right.
//
// take is asked for the memory that this takes, in bytes; without it nothing is supposed.
func (m *Image) Guess(u uint32, take func(int64) bool) {
	if m.residue.Has(u) {
		return
	}
	if g, v := m.d.twin(m, u); g != nil {
		if rest, ok := g.residue.surely(v, take); ok {
			m.residue.keep(u, rest, true)
		}
	}
}

// twin finds the unit of another image, of those that m may copy from, that is most likely the same as unit u of m: of those with the
// same extents and the same behind them, the one in the image that is most like m, and there
// the one whose place in its blob is nearest.
func (d *Dir) twin(m *Image, u uint32) (g *Image, unit uint32) {
	t := m.table
	_, at := t.UnitExtents(u)
	first := t.Extent(at(0))
	far, like := int64(math.MaxInt64), -1
	for _, other := range d.Images() {
		if !d.lends(other, m, &first.Digest) {
			continue
		}
		o := other.table
		o.Find(&first.Digest, func(i uint32) bool {
			v := o.Extent(i).Unit
			if t.sameUnit(u, o, v) && t.sameStart(u+1, o, v+1) {
				// Places from the start and from the end: what was inserted shifts one of them.
				d := min(distance(int64(u), int64(v)), distance(int64(t.NUnits)-int64(u), int64(o.NUnits)-int64(v)))
				if l := m.alike.to(t, other); l > like || l == like && d < far {
					g, unit, far, like = other, v, d, l
				}
			}
			return true
		})
	}
	return g, unit
}

// likenessSample is how many extents of an image are looked for in another one.
const likenessSample = 128

// knownAlike is how many other images' likeness is remembered, of each image.
const knownAlike = 1024

// likenesses are how like other images, by name, one is. An earlier build of a layer has nearly all of its extents, where
// another layer of the same image has a few by chance.
type likenesses struct {
	mu  sync.Mutex // guards all
	all map[string]int
}

// to says how much of table t another image has: of a sample of its extents.
func (l *likenesses) to(t *Table, g *Image) (n int) {
	l.mu.Lock()
	n, known := l.all[g.id]
	l.mu.Unlock()
	if known {
		return n
	}
	step := max(t.NExtents/likenessSample, 1)
	for i := 0; i < t.NExtents; i += step {
		e := t.Extent(uint32(i))
		if g.table.Has(&e.Digest) {
			n++
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil || len(l.all) >= knownAlike { // images come and go
		l.all = map[string]int{}
	}
	l.all[g.id] = n
	return n
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

// sameUnit reports whether two units have the same extents at the same places.
func (t *Table) sameUnit(u uint32, o *Table, v uint32) bool {
	n, at := t.UnitExtents(u)
	m, oat := o.UnitExtents(v)
	if n != m {
		return false
	}
	for k := range n {
		a, b := t.Extent(at(k)), o.Extent(oat(k))
		if a.Digest != b.Digest || a.Len != b.Len || a.Inner != b.Inner {
			return false
		}
	}
	return true
}

// sameStart reports whether two units begin with the same extent, or are both none.
func (t *Table) sameStart(u uint32, o *Table, v uint32) bool {
	if int(u) >= t.NUnits || int(v) >= o.NUnits {
		return int(u) >= t.NUnits && int(v) >= o.NUnits
	}
	n, at := t.UnitExtents(u)
	m, oat := o.UnitExtents(v)
	if n == 0 || m == 0 {
		return false // a table of contents, of which there is no digest here
	}
	a, b := t.Extent(at(0)), o.Extent(oat(0))
	return a.Inner == b.Inner && slices.Equal(a.Digest[:], b.Digest[:])
}
