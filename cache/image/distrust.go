package image

import (
	"crypto/sha256"

	"github.com/remora-storage/remora/internal/wire"
)

// syncLocked puts the image's data on stable storage. Where that fails, the kernel may have dropped what it could not write and
// taken the pages for clean: a second try would succeed, and prove nothing. So what was written since the last commit is
// not believed: an extent that still has its digest is written again, and another one is absent, to be fetched again. The
// error stands, and the next commit syncs what was written again. The caller holds punch exclusively if
// held says so; runs are what it was about to record.
func (l *ledger) syncLocked(runs []run, held bool) error {
	m := l.m
	err := m.d.fdatasync(int(m.file.Fd()))
	if err == nil {
		return nil
	}
	if !held {
		m.punch.Lock() // what was written before the failure is noted by now
		defer m.punch.Unlock()
	}
	m.mu.Lock()
	runs = append(runs, m.held.take()...)
	m.mu.Unlock()
	again, lost := 0, 0
	for _, r := range runs {
		if r.gone {
			continue // nothing is recorded as gone, so it is still here
		}
		for i := r.first; i < r.first+r.count; i++ {
			if l.rewriteLocked(i) {
				again++
			} else {
				lost++
			}
		}
	}
	if l.record == nil && !l.rewriteMetaLocked() {
		l.unsafe = true
	}
	m.d.log.Error("disk does not take the cache's data: what was written is written or fetched again", "digest", m.id, "err", err,
		"written_again", again, "to_fetch", lost)
	m.mu.Lock()
	pinned := m.pins > 0
	m.mu.Unlock()
	if lost > 0 && pinned {
		m.d.lost(m) // the kernel reads this file itself, and asks for nothing
	}
	return err
}

// rewriteLocked writes an extent again if it has its digest, and otherwise takes it away.
func (l *ledger) rewriteLocked(i uint32) bool {
	m := l.m
	if !m.Has(i) {
		return false
	}
	e := m.table.Extent(i)
	p := make([]byte, e.Len)
	if _, err := m.file.ReadAt(p, e.Off); err == nil && sha256.Sum256(p) == e.Digest {
		if _, err := m.file.WriteAt(p, e.Off); err == nil {
			m.mu.Lock()
			m.held.note(i)
			m.mu.Unlock()
			return true
		}
	}
	m.mu.Lock()
	m.held.mark(i, false)
	m.mu.Unlock()
	_ = punchHole(m.file, e.Off, int64(e.Len)) // else its space is counted as free too early
	m.d.budget.Add(-pages(int64(e.Len)))
	return false
}

// rewriteMetaLocked writes the metadata again, if it is what was written at first.
func (l *ledger) rewriteMetaLocked() bool {
	m := l.m
	p := make([]byte, m.table.MetaSize)
	if _, err := m.file.ReadAt(p, 0); err != nil || wire.Sum(p) != l.metaSum {
		return false
	}
	_, err := m.file.WriteAt(p, 0)
	return err == nil
}
