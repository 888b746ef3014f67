package image

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache/budget"
)

// AppendVictims adds what of all images may be evicted.
func (d *Dir) AppendVictims(all []budget.Victim) []budget.Victim {
	for _, m := range d.Images() {
		m.mu.Lock()
		if m.evictableLocked() {
			all = m.held.appendVictims(all, m)
		}
		m.mu.Unlock()
	}
	return all
}

func (h *held) appendVictims(all []budget.Victim, of budget.Holder) []budget.Victim {
	for i := range uint32(h.t.NExtents) {
		if h.has(i) {
			v := budget.Victim{Of: of, Part: i, Size: pages(int64(h.t.Extent(i).Len))}
			if h.used != nil {
				v.Used = h.used[i]
			}
			all = append(all, v)
		}
	}
	return all
}

// Drop takes extents away: recorded as gone first, then punched out of the image. Readers and
// writers of this image wait meanwhile.
func (m *Image) Drop(extents []uint32) (freed int64, err error) {
	if err := m.Commit(); err != nil { // most of the syncing, without holding readers up
		return 0, err
	}
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	m.punch.Lock()
	defer m.punch.Unlock()
	m.mu.Lock()
	runs := m.held.take()
	pinned := !m.evictableLocked()
	m.mu.Unlock()
	if pinned || m.ledger.record == nil {
		m.mu.Lock()
		m.held.giveBack(runs)
		m.mu.Unlock()
		return 0, nil
	}
	slices.Sort(extents)
	for _, i := range extents {
		runs = append(runs, run{first: i, count: 1, gone: true})
	}
	if err := m.ledger.syncLocked(runs, true); err != nil {
		return 0, fmt.Errorf("sync image: %w", err)
	}
	if err := m.ledger.addLocked(runs); err != nil {
		return 0, err // some of runs may be recorded as gone: that costs a fetch, not a wrong byte
	}
	for _, i := range extents {
		m.mu.Lock()
		e := m.table.Extent(i)
		if m.held.has(i) {
			freed += pages(int64(e.Len))
			m.held.mark(i, false)
		}
		m.mu.Unlock()
		if err := punchHole(m.file, e.Off, int64(e.Len)); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// punchHole frees the blocks of a range. Extents start on a block unless they follow another of
// the same file, so that rounding outwards would hit a neighbour: the kernel zeros the edges.
func punchHole(f *os.File, off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}
