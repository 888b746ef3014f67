package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// ledger is what is on stable storage of an image.
type ledger struct {
	m *Image // whose ledger it is

	mu      sync.Mutex // one commit at a time; taken before Image.punch and Image.mu; guards the fields below
	record  *presence  // nil until the first commit
	metaSum uint32     // of the metadata, as it was written; for the first commit
	unsafe  bool       // its metadata may be lost, so that it is never recorded
}

// Commit records everything that was filled so far and returns when that is on stable storage.
func (m *Image) Commit() error { return m.ledger.commit() }

// commit syncs the image's data and then records what was filled. The order is what makes the
// record true.
func (l *ledger) commit() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.m
	m.mu.Lock()
	runs := m.held.take()
	gone := m.gone
	m.mu.Unlock()
	if gone || (len(runs) == 0 && l.record != nil) {
		return nil
	}
	if l.unsafe {
		return nil // the next life makes it anew
	}
	if err := l.syncLocked(runs, false); err != nil {
		return fmt.Errorf("sync image: %w", err)
	}
	err := l.addLocked(runs)
	if err != nil {
		m.mu.Lock()
		m.held.giveBack(runs)
		m.mu.Unlock()
	}
	return err
}

// addLocked records what was synced.
func (l *ledger) addLocked(runs []run) error {
	if l.record == nil {
		return l.beginLocked(runs)
	}
	return l.record.append(runs)
}

// beginLocked puts the image's other parts on stable storage; the presence record, made last,
// says that all of it is there.
func (l *ledger) beginLocked(runs []run) error {
	m := l.m
	parts := []string{tableFile}
	if m.cut.points != nil {
		parts = append(parts, pointsFile)
	}
	if m.proof.Known() {
		parts = append(parts, plainFile)
	}
	for _, part := range parts {
		if err := syncPath(filepath.Join(m.path, part)); err != nil {
			return err
		}
	}
	r, err := createPresence(filepath.Join(m.path, presenceFile), m.table.sum, runs)
	if err != nil {
		return err
	}
	if err := syncPath(m.d.path); err != nil {
		r.close() // the next commit makes it again
		return err
	}
	l.record = r
	return nil
}

// load reads which extents are here. It is called before anybody else has the image.
func (l *ledger) load() (err error) {
	m := l.m
	t := m.table
	l.record, err = openPresence(filepath.Join(m.path, presenceFile), t.sum, uint32(t.NExtents), m.held.apply)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: never recorded", ErrCorrupt)
	}
	if err == nil && l.record.entries > uint32(t.NExtents)+minCompact {
		err = l.compact()
	}
	return err
}

// minCompact is how many entries more than extents a record has before it is written anew.
const minCompact = 1024

// compact replaces the record by a shorter one that says the same. If there is no room for that, the long one stays. It is
// called before anybody else has the image.
func (l *ledger) compact() error {
	m := l.m
	path := filepath.Join(m.path, presenceFile)
	short, err := createPresence(path, m.table.sum, m.held.runs())
	if err != nil && l.record.isAt(path) {
		m.d.log.Warn("presence record stays long", "digest", m.id, "err", err)
		return nil
	}
	if err != nil {
		return err // a power cut may bring the long one back, without what is appended to the short one
	}
	l.record.close() // nothing was written to it
	l.record = short
	return nil
}

// syncPath puts a directory, or a file, on stable storage.
func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
