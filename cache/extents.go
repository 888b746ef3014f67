package cache

import "crypto/sha256"

// Extents calls yield with each extent that shares a byte with [off, off+n) of the image, in order,
// until it returns false.
func (f *File) Extents(off, n int64, yield func(Extent) bool) {
	lo, hi := f.t.overlapping(off, n)
	for i := lo; i < hi; i++ {
		if !yield(f.t.extent(uint32(i))) {
			return
		}
	}
}

// Find returns an extent with some content, if the file has one.
func (f *File) Find(digest [sha256.Size]byte, n int64) (found Extent, ok bool) {
	f.t.find(&digest, func(i uint32) bool {
		found = f.t.extent(i)
		ok = int64(found.Len) == n
		return !ok
	})
	return found, ok
}

// UnitLen returns the packed bytes of a unit.
func (f *File) UnitLen(u uint32) int64 { return f.t.unit(u).Len }

// Wants reports whether fetching a unit would bring anything that is neither here nor on its way.
func (f *File) Wants(u uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int(u) < f.t.nUnits && !f.gone && f.wantedLocked(u)
}

// Removed reports whether the file was removed from the cache.
func (f *File) Removed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gone
}
