package image

// held is which extents an image has, and when they were used. Image.mu guards it.
type held struct {
	t       *Table
	present []uint64 // a bit an extent
	used    []uint32 // when an extent was last used, in ticks; nil until one is
	n       int      // extents that are present
	bytes   int64    // on disk, of present extents
	dirty   []run    // filled, not recorded
}

func newHeld(t *Table) held { return held{t: t, present: make([]uint64, (t.NExtents+63)/64)} }

func (h *held) has(i uint32) bool { return h.present[i/64]&(1<<(i%64)) != 0 }

// all reports whether every extent is present.
func (h *held) all() bool { return h.n == h.t.NExtents }

// mark sets or clears an extent's bit and keeps the counts.
func (h *held) mark(i uint32, here bool) {
	if h.has(i) == here {
		return
	}
	h.present[i/64] ^= 1 << (i % 64)
	n := pages(int64(h.t.Extent(i).Len))
	if here {
		h.n++
		h.bytes += n
	} else {
		h.n--
		h.bytes -= n
	}
}

func (h *held) apply(r run) {
	for i := r.first; i < r.first+r.count; i++ {
		h.mark(i, !r.gone)
	}
}

// note adds an extent to what the next commit records.
func (h *held) note(i uint32) {
	if k := len(h.dirty); k > 0 && h.dirty[k-1].first+h.dirty[k-1].count == i {
		h.dirty[k-1].count++
		return
	}
	h.dirty = append(h.dirty, run{first: i, count: 1})
}

// use notes that an extent is used now.
func (h *held) use(i, now uint32) {
	if h.used == nil {
		h.used = make([]uint32, h.t.NExtents)
	}
	h.used[i] = now
}

// take returns what is to be recorded, which is then the caller's to record or to give back.
func (h *held) take() []run {
	runs := h.dirty
	h.dirty = nil
	return runs
}

func (h *held) giveBack(runs []run) { h.dirty = append(runs, h.dirty...) }

// runs returns what a record says that says what is present.
func (h *held) runs() (runs []run) {
	for i := range uint32(h.t.NExtents) {
		if !h.has(i) {
			continue
		}
		if k := len(runs); k > 0 && runs[k-1].first+runs[k-1].count == i {
			runs[k-1].count++
		} else {
			runs = append(runs, run{first: i, count: 1})
		}
	}
	return runs
}
