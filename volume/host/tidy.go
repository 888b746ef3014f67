package host

import (
	"context"
	"time"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/volume"
)

const (
	tidyTimeout = 5 * time.Minute
	// tidyRest is how many times as long as each read of a journal took it rests, so that others have the disk.
	tidyRest = 3
	// tidyRests is how long it reads before: single reads are shorter than a sleep can be.
	tidyRests = 10 * time.Millisecond
)

// tidier removes journals that nobody needs. One of its calls is made at a time.
type tidier struct {
	Journals
	kept map[volume.Stray]bool // read before: they hold something
}

func newTidier(h *Host) *tidier {
	var owed time.Duration
	return &tidier{Journals{h, func(ctx context.Context, took time.Duration) error {
		if owed += took; owed < tidyRests {
			return context.Cause(ctx)
		}
		took, owed = owed, 0
		return backoff.Sleep(ctx, tidyRest*took)
	}}, map[volume.Stray]bool{}}
}

// restful is a journal that is read slowly enough for others to have the disk, and no longer than its reader wants to.
type restful struct {
	volume.JournalFile
	rest func(took time.Duration) error
}

func (r restful) ReadAt(p []byte, off int64) (int, error) {
	began := time.Now()
	n, err := r.JournalFile.ReadAt(p, off)
	if err == nil {
		err = r.rest(time.Since(began))
	}
	return n, err
}

// tidy removes orphans that hold nothing which their store did not have, and forgets volumes of which no journal is left.
func (t *tidier) tidy(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, tidyTimeout)
	defer stop()
	all, err := t.h.journals.All()
	if err != nil {
		return
	}
	here, kept := map[volume.ID]bool{}, map[volume.Stray]bool{}
	for _, s := range all {
		here[s.Volume] = true
		kept[s] = t.kept[s]
	}
	t.kept = kept
	for _, s := range all {
		if ctx.Err() != nil {
			break
		}
		if !t.kept[s] && (s.Orphan || !t.uses(s.Volume)) && t.passed(ctx, s) {
			t.kept[s] = t.keeps(ctx, s)
		}
	}
	t.forget(here)
}

// passed reports whether a journal's volume has gone on without it. Its store knows, whatever the journal holds.
func (t *tidier) passed(ctx context.Context, s volume.Stray) bool {
	k := Journal{Stray: s}
	t.h.mu.Lock()
	had, ok := t.h.record.Had[s.Volume]
	t.h.mu.Unlock()
	k.Store = had.Store
	fate, err := t.fate(ctx, &k, ok, func(ctx context.Context, st store.Store) (volume.Fate, error) {
		return volume.FateByHead(ctx, st, s.Volume, s.ID)
	})
	return err == nil && !fate.Named
}

// keeps removes a journal if it holds nothing, and reports whether it holds something.
func (t *tidier) keeps(ctx context.Context, s volume.Stray) bool {
	k := t.look(ctx, s)
	if k.State != JournalOrphan || k.Writes > 0 || k.AtMost || ctx.Err() != nil {
		return ctx.Err() == nil
	}
	if err := t.remove(k, false); err == nil {
		t.h.opts.Log.Info("a journal was removed: the store has all that it held", "volume", k.Name, "journal", k.ID)
	}
	return false
}

// forget forgets the volumes of which there is no journal.
func (t *tidier) forget(here map[volume.ID]bool) {
	t.h.mu.Lock()
	defer t.h.mu.Unlock()
	n := len(t.h.record.Had)
	for id := range t.h.record.Had {
		if !here[id] && !t.usesLocked(id) {
			delete(t.h.record.Had, id)
		}
	}
	if len(t.h.record.Had) < n {
		if err := t.h.saveLocked(); err != nil {
			t.h.opts.Log.Warn("the record was not saved", "err", err)
		}
	}
}
