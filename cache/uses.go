package cache

import (
	"slices"
	"time"
)

// A Use is the first time that a reader asked for an extent while uses were recorded.
type Use struct {
	Extent Extent
	At     time.Time
}

// A Recording notes which extents of a file readers ask for, in order.
type Recording struct {
	f     *File
	seen  []uint64 // a bit an extent; guarded by f.mu, as order is
	order []use
}

type use struct {
	extent uint32
	at     time.Time
}

// RecordUses notes which extents readers ask for until the recording is ended. Reads that the
// kernel serves from memory, or of a complete file that it reads itself, are not seen.
func (f *File) RecordUses() *Recording {
	r := &Recording{f: f, seen: make([]uint64, (f.t.nExtents+63)/64)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recordings = append(f.recordings, r)
	return r
}

// Len returns how many extents were used so far.
func (r *Recording) Len() int {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return len(r.order)
}

// End ends the recording and returns what was used, in order.
func (r *Recording) End() []Use {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.f.recordings = slices.DeleteFunc(r.f.recordings, func(x *Recording) bool { return x == r })
	all := make([]Use, len(r.order))
	for i, u := range r.order {
		all[i] = Use{Extent: r.f.t.extent(u.extent), At: u.at}
	}
	return all
}

func (r *Recording) noteLocked(extent uint32) {
	if r.seen[extent/64]&(1<<(extent%64)) == 0 {
		r.seen[extent/64] |= 1 << (extent % 64)
		r.order = append(r.order, use{extent, time.Now()})
	}
}

// File returns the file whose uses are recorded.
func (r *Recording) File() *File { return r.f }
