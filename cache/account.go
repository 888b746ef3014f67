package cache

import (
	"math/bits"
	"slices"
	"time"
)

// account is what became of a file's units since the daemon started: one bit a unit, each set nil
// until there is one. It is guarded by File.mu.
type account struct {
	asked      []uint64 // a reader asked for it
	prefetched []uint64 // fetched before a reader waited for it
	demanded   []uint64 // fetched because a reader waited for it

	waits  int64 // reads that waited for the network
	waited time.Duration
}

func set(all *[]uint64, units int, u uint32) {
	if *all == nil {
		*all = make([]uint64, (units+63)/64)
	}
	(*all)[u/64] |= 1 << (u % 64)
}

// account notes for whom a unit was fetched.
func (f *File) account(u uint32, prio priority) {
	n, _ := f.t.unitExtents(u)
	if n == 0 {
		return // the archive's own bytes, which no reader asks for
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch prio {
	case demand:
		set(&f.acct.demanded, f.t.nUnits, u)
		f.c.metrics.demandBytes.Add(float64(f.t.unit(u).Len))
	case prefetch:
		set(&f.acct.prefetched, f.t.nUnits, u)
		f.c.metrics.prefetchBytes.Add(float64(f.t.unit(u).Len))
	}
}

// askLocked notes that a reader asks for a unit.
func (f *File) askLocked(u uint32) {
	a := &f.acct
	if a.asked != nil && a.asked[u/64]&(1<<(u%64)) != 0 {
		return
	}
	set(&a.asked, f.t.nUnits, u)
	if a.prefetched != nil && a.prefetched[u/64]&(1<<(u%64)) != 0 {
		f.c.metrics.prefetchUsedBytes.Add(float64(f.t.unit(u).Len))
	}
}

// noteWait notes that a reader has waited for units, if one of them came over the network, and
// reports whether that is so.
func (f *File) noteWait(fills []*unitFill, took time.Duration) bool {
	if !slices.ContainsFunc(fills, func(fill *unitFill) bool { return fill.parts == nil }) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acct.waits++
	f.acct.waited += took
	return true
}

// addLocked adds the account to a file's numbers.
func (a *account) addLocked(t *table, s *Stats) {
	sum := func(of func(i int) uint64) (n int64) {
		for i := range (t.nUnits + 63) / 64 {
			for w := of(i); w != 0; w &= w - 1 {
				n += t.unit(uint32(i*64 + bits.TrailingZeros64(w))).Len
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
	s.Waits, s.Waited = a.waits, a.waited
}
