package image

import "math/bits"

// account is what became of an image's units since the daemon started: one bit a unit, each set nil
// until there is one. Image.mu guards it.
type account struct {
	t          *Table
	asked      []uint64 // a reader asked for it
	prefetched []uint64 // fetched before a reader waited for it
	demanded   []uint64 // fetched because a reader waited for it
}

func (a *account) set(all *[]uint64, u uint32) {
	if *all == nil {
		*all = make([]uint64, (a.t.NUnits+63)/64)
	}
	(*all)[u/64] |= 1 << (u % 64)
}

// NoteFetched notes that a unit was fetched, because a reader waited for it or before that.
func (m *Image) NoteFetched(u uint32, demanded bool) {
	n, _ := m.table.UnitExtents(u)
	if n == 0 {
		return // the archive's own bytes, which no reader asks for
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	packed := float64(m.table.Unit(u).Len)
	if demanded {
		m.acct.set(&m.acct.demanded, u)
		m.d.metrics.demand.Add(packed)
	} else {
		m.acct.set(&m.acct.prefetched, u)
		m.d.metrics.prefetch.Add(packed)
	}
}

// ask notes that a reader asks for a unit, and reports whether it is the first to ask for one that was prefetched.
func (a *account) ask(u uint32) (prefetched bool) {
	if a.asked != nil && a.asked[u/64]&(1<<(u%64)) != 0 {
		return false
	}
	a.set(&a.asked, u)
	return a.prefetched != nil && a.prefetched[u/64]&(1<<(u%64)) != 0
}

// Stats are an image's numbers, all in bytes.
type Stats struct {
	Data    int64 // of all extents
	Present int64 // of the extents that are here
	Disk    int64 // on disk now, everything of this image

	// Packed bytes of units since the daemon started: those that readers asked for, those that were
	// fetched before anybody waited, those of the latter that readers asked for, and those that were
	// fetched because a reader waited. What the kernel reads without asking is not seen.
	Read, Prefetched, PrefetchUsed, Demanded int64
}

// Stats returns the image's numbers.
func (m *Image) Stats() (s Stats) {
	for i := range uint32(m.table.NExtents) {
		n := int64(m.table.Extent(i).Len)
		s.Data += n
		if m.Has(i) {
			s.Present += n
		}
	}
	s.Disk = m.Disk()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.acct.add(&s)
	return s
}

// add adds the account to an image's numbers.
func (a *account) add(s *Stats) {
	sum := func(of func(i int) uint64) (n int64) {
		for i := range (a.t.NUnits + 63) / 64 {
			for w := of(i); w != 0; w &= w - 1 {
				n += a.t.Unit(uint32(i*64 + bits.TrailingZeros64(w))).Len
			}
		}
		return n
	}
	word := func(all []uint64, i int) uint64 {
		if all == nil {
			return 0
		}
		return all[i]
	}
	s.Read = sum(func(i int) uint64 { return word(a.asked, i) })
	s.Prefetched = sum(func(i int) uint64 { return word(a.prefetched, i) })
	s.PrefetchUsed = sum(func(i int) uint64 { return word(a.prefetched, i) & word(a.asked, i) })
	s.Demanded = sum(func(i int) uint64 { return word(a.demanded, i) })
}
