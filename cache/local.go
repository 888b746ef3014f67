package cache

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
