package image

import (
	"slices"
	"time"
)

// A Use is the first time that a reader asked for an extent while uses were recorded.
type Use struct {
	Extent Extent
	At     time.Time
}

// A Recording notes which extents of an image readers ask for, in order.
type Recording struct {
	m     *Image
	seen  []uint64 // a bit an extent; guarded by m.mu, as order is
	order []use
}

type use struct {
	extent uint32
	at     time.Time
}

// RecordUses notes which extents readers ask for until the recording is ended. Reads that the
// kernel serves from memory, or of a complete file that it reads itself, are not seen.
func (m *Image) RecordUses() *Recording {
	r := &Recording{m: m, seen: make([]uint64, (m.table.NExtents+63)/64)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recordings = append(m.recordings, r)
	return r
}

// Len returns how many extents were used so far.
func (r *Recording) Len() int {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return len(r.order)
}

// End ends the recording and returns what was used, in order.
func (r *Recording) End() []Use {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.m.recordings = slices.DeleteFunc(r.m.recordings, func(x *Recording) bool { return x == r })
	all := make([]Use, len(r.order))
	for i, u := range r.order {
		all[i] = Use{Extent: r.m.table.Extent(u.extent), At: u.at}
	}
	return all
}

func (r *Recording) noteLocked(extent uint32) {
	if r.seen[extent/64]&(1<<(extent%64)) == 0 {
		r.seen[extent/64] |= 1 << (extent % 64)
		r.order = append(r.order, use{extent, time.Now()})
	}
}
