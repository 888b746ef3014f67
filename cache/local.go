package cache

import (
	"math"
	"slices"
)

// fillLocally fills a unit from extents with the same digests, in this file or another, and
// reports whether that gave all of it.
func (f *File) fillLocally(fill *unitFill) bool {
	n, at := f.t.unitExtents(fill.unit)
	if n == 0 {
		return false
	}
	parts := make(map[uint32][]byte, n)
	for k := range n {
		i := at(k)
		e := f.t.extent(i)
		b := f.c.findBytes(f, &e)
		if b == nil {
			return false
		}
		parts[i] = b
	}
	fill.parts = parts
	f.store(fill)
	f.guessResidue(fill.unit)
	f.c.metrics.localUnits.Inc()
	return true
}

// findBytes returns the bytes of any present extent with e's digest and length, or nil.
func (c *Cache) findBytes(first *File, e *Extent) []byte {
	if b := first.bytesOf(e); b != nil {
		return b
	}
	for _, f := range c.snapshotFiles() {
		if f != first {
			if b := f.bytesOf(e); b != nil {
				return b
			}
		}
	}
	return nil
}

func (f *File) bytesOf(want *Extent) (b []byte) {
	f.t.find(&want.Digest, func(i uint32) bool {
		e := f.t.extent(i)
		if e.Len != want.Len {
			return true
		}
		f.punch.RLock()
		defer f.punch.RUnlock()
		if !f.has(i) {
			return true
		}
		p := make([]byte, e.Len)
		if _, err := f.img.ReadAt(p, e.Off); err != nil {
			return true // closed or failing: the extent is fetched instead
		}
		b = p
		return false
	})
	return b
}

// guessResidue supposes that a unit which was filled locally has between and behind its extents
// what its twin has: a unit of another file with the same extents, followed by the same. In a
// rebuilt layer that is so but for the headers that have changed, and fetching them all to know
// would be fetching the whole layer. The layer's diffID decides whether all guesses were right.
func (f *File) guessResidue(u uint32) {
	if f.residue.has(u) {
		return
	}
	if g, v := f.twin(u); g != nil {
		if rest, ok := g.surelyAround(v); ok {
			f.keepRecord(u, residueGuess, f.c.residues.enc.EncodeAll(rest, nil))
		}
	}
}

// twin finds the unit of another file that is most likely the same as unit u: of those with the
// same extents and the same behind them, the one in the file that is most like this one, and there
// the one whose place in its blob is nearest.
func (f *File) twin(u uint32) (g *File, unit uint32) {
	_, at := f.t.unitExtents(u)
	first := f.t.extent(at(0))
	far, like := int64(math.MaxInt64), -1
	for _, other := range f.c.snapshotFiles() {
		if other == f {
			continue
		}
		other.t.find(&first.Digest, func(i uint32) bool {
			v := other.t.extent(i).Unit
			if f.t.sameUnit(u, other.t, v) && f.t.sameStart(u+1, other.t, v+1) {
				// Places from the start and from the end: what was inserted shifts one of them.
				d := min(distance(int64(u), int64(v)), distance(int64(f.t.nUnits)-int64(u), int64(other.t.nUnits)-int64(v)))
				if l := f.likeness(other); l > like || l == like && d < far {
					g, unit, far, like = other, v, d, l
				}
			}
			return true
		})
	}
	return g, unit
}

// likenessSample is how many extents of a file are looked for in another one.
const likenessSample = 128

// knownAlike is how many other files' likeness is remembered, of each file.
const knownAlike = 1024

// likeness says how much of this file another one has: of a sample of its extents. An earlier build of
// a layer has nearly all, where another layer of the same image has a few by chance.
func (f *File) likeness(g *File) (n int) {
	f.mu.Lock()
	n, known := f.alike[g.id]
	f.mu.Unlock()
	if known {
		return n
	}
	step := max(f.t.nExtents/likenessSample, 1)
	for i := 0; i < f.t.nExtents; i += step {
		e := f.t.extent(uint32(i))
		g.t.find(&e.Digest, func(uint32) bool { n++; return false })
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.alike == nil || len(f.alike) >= knownAlike { // files come and go
		f.alike = map[string]int{}
	}
	f.alike[g.id] = n
	return n
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

// sameUnit reports whether two units have the same extents at the same places.
func (t *table) sameUnit(u uint32, o *table, v uint32) bool {
	n, at := t.unitExtents(u)
	m, oat := o.unitExtents(v)
	if n != m {
		return false
	}
	for k := range n {
		a, b := t.extent(at(k)), o.extent(oat(k))
		if a.Digest != b.Digest || a.Len != b.Len || a.Inner != b.Inner {
			return false
		}
	}
	return true
}

// sameStart reports whether two units begin with the same extent, or are both none.
func (t *table) sameStart(u uint32, o *table, v uint32) bool {
	if int(u) >= t.nUnits || int(v) >= o.nUnits {
		return int(u) >= t.nUnits && int(v) >= o.nUnits
	}
	n, at := t.unitExtents(u)
	m, oat := o.unitExtents(v)
	if n == 0 || m == 0 {
		return false // a table of contents, of which there is no digest here
	}
	a, b := t.extent(at(0)), o.extent(oat(0))
	return a.Inner == b.Inner && slices.Equal(a.Digest[:], b.Digest[:])
}
