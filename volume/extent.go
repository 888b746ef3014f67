package volume

import "github.com/tidwall/btree"

// An extent is a run of blocks that lie in one place.
type extent struct {
	lba    uint64 // of its first block
	blocks uint32
	hole   bool   // it reads as zeros, and place says nothing
	seq    uint64 // of the last write that it may hold: writes up to this one to its blocks are older
	place  place
}

// A place is part of a frame of a segment or, if seg is 0, of an entry of the journal. Both are checked as a whole.
type place struct {
	seg   uint64 // number of the segment
	off   int64  // of the frame in its segment, or of the entry's data in the journal
	skip  uint32 // blocks of it before the first one
	whole uint32 // blocks of it, at all
	crc   uint32 // of the entry; frames carry their own
}

func (e extent) end() uint64 { return e.lba + uint64(e.blocks) }

// clip returns the part of e between two blocks, which is not empty.
func (e extent) clip(lo, hi uint64) extent {
	if e.lba < lo {
		d := uint32(lo - e.lba)
		e.lba, e.blocks = lo, e.blocks-d
		if !e.hole {
			e.place.skip += d
		}
	}
	if e.end() > hi {
		e.blocks = uint32(hi - e.lba)
	}
	return e
}

// An extents is a set of extents that do not overlap. It is not safe for concurrent changes.
type extents struct {
	m btree.Map[uint64, extent] // by lba
}

func (x *extents) len() int { return x.m.Len() }

// overlapping yields the extents that have a block in common with [lo, hi), clipped to it, in order.
func (x *extents) overlapping(lo, hi uint64, yield func(extent) bool) {
	if lo >= hi {
		return
	}
	stopped := false
	x.m.Descend(lo, func(k uint64, e extent) bool {
		if k < lo && e.end() > lo {
			stopped = !yield(e.clip(lo, hi))
		}
		return false
	})
	if stopped {
		return
	}
	x.m.Ascend(lo, func(k uint64, e extent) bool {
		return k < hi && yield(e.clip(lo, hi))
	})
}

// set puts e over whatever is in its place.
func (x *extents) set(e extent) {
	x.clear(e.lba, e.end())
	x.m.Set(e.lba, e)
}

// cover puts holes over [0, end): there are volumes of more blocks than one extent has.
func (x *extents) cover(end uint64) {
	for lba := uint64(0); lba < end; lba += maxHole {
		x.set(extent{lba: lba, blocks: uint32(min(end-lba, maxHole)), hole: true})
	}
}

// clear takes [lo, hi) out.
func (x *extents) clear(lo, hi uint64) {
	var before extent
	found := false
	x.m.Descend(lo, func(k uint64, e extent) bool {
		before, found = e, k < lo && e.end() > lo
		return false
	})
	if found {
		x.m.Set(before.lba, before.clip(before.lba, lo))
		if before.end() > hi {
			x.m.Set(hi, before.clip(hi, before.end()))
			return
		}
	}
	for {
		var at extent
		found = false
		x.m.Ascend(lo, func(k uint64, e extent) bool {
			at, found = e, k < hi
			return false
		})
		if !found {
			return
		}
		x.m.Delete(at.lba)
		if at.end() > hi {
			x.m.Set(hi, at.clip(hi, at.end()))
			return
		}
	}
}

// setNewer puts e wherever what is there is not of a later write: a segment may hold copies of old writes.
func (x *extents) setNewer(e extent) {
	var newer []extent
	x.overlapping(e.lba, e.end(), func(old extent) bool {
		if old.seq > e.seq {
			newer = append(newer, old)
		}
		return true
	})
	at := e.lba
	for _, n := range newer {
		if n.lba > at {
			x.set(e.clip(at, n.lba))
		}
		at = n.end()
	}
	if at < e.end() {
		x.set(e.clip(at, e.end()))
	}
}

// all yields every extent in order.
func (x *extents) all(yield func(extent) bool) {
	x.m.Scan(func(_ uint64, e extent) bool { return yield(e) })
}
