package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/remora-storage/remora/remote/store"
)

// Status is what a volume does now.
type Status struct {
	Class     Class
	AtRisk    int64         // bytes of acknowledged writes that the store does not have
	Oldest    time.Duration // age of the oldest of them, 0 if there is none
	Journal   int64         // bytes of the journal in use
	JournalOf int64         // bytes of the journal
	Tail      int           // segments since the last checkpoint
	Mapped    int64         // bytes that the map named at the last checkpoint
	Waits     []Wait        // what waits for the store, or for room on the journal's disk
	Throttled string        // why writes wait: ThrottleJournal, ThrottleStore, or "" if they do not
	Failed    error
	Closed    bool // it works no more, because it was to be given up
	Stats     Stats
}

// Reasons for which writes wait.
const (
	ThrottleJournal = "journal_full" // its content is not in the store yet
	ThrottleStore   = "store_behind" // one on the same machine does not keep up
)

// Wait is something that is tried again and again.
type Wait struct {
	What   string
	Reason error
	Since  time.Time
}

// Status returns what the volume does now.
func (v *Volume) Status() Status {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := Status{Class: v.head.Class, Tail: len(v.head.Tail), Mapped: v.root.Blocks * Block, Failed: v.err, Stats: v.stats}
	s.Stats.Written, s.Stats.Read, s.Stats.Flushes = v.bytesWritten.Load(), v.bytesRead.Load(), v.flushes.Load()
	if errors.Is(v.err, ErrClosed) {
		s.Failed, s.Closed = nil, true
	}
	for _, g := range slices.Concat(v.sealed, []*generation{v.active}) { // append would write into what sealed may grow into
		s.AtRisk += g.bytes
		if s.Oldest == 0 && !g.oldest.IsZero() {
			s.Oldest = time.Since(g.oldest)
		}
	}
	s.Journal, s.JournalOf = v.journal.used()
	s.Throttled = v.journal.throttled()
	for what, w := range v.waiting {
		s.Waits = append(s.Waits, Wait{what, w.err, w.since})
	}
	return s
}

// SetFS records the file system that was made on the volume, and flushed.
func (v *Volume) SetFS(ctx context.Context, fs string) error {
	return v.update(ctx, func(h *Head) error {
		h.FS = fs
		return nil
	}, func() {})
}

// Fresh reports whether nothing was ever written to the volume.
func (v *Volume) Fresh() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.head.FS == "" && v.written == 0
}

// Resize makes the volume larger.
func (v *Volume) Resize(ctx context.Context, size int64) error {
	return v.update(ctx, func(h *Head) error { return h.grow(size) }, func() { v.size.Store(size) })
}

// Resize makes a volume larger that nobody owns.
func Resize(ctx context.Context, st store.Store, id ID, size int64) (*Head, error) {
	for {
		h, version, err := readHead(ctx, st, id)
		if err != nil {
			return nil, err
		}
		if h.Owner != nil {
			return nil, fmt.Errorf("%s: %w by node %s: resize it there", h.Name, ErrAttached, h.Owner.Node)
		}
		next := h.clone()
		if err := next.grow(size); err != nil {
			return nil, err
		}
		next.next()
		h, _, swapped, err := swapHead(ctx, st, h, next, version, quiet())
		if err != nil || swapped {
			return h, err
		}
	}
}

func (h *Head) grow(size int64) error {
	if size < h.Size {
		return fmt.Errorf("%s has %d bytes: volumes do not shrink", h.Name, h.Size)
	}
	h.Size = size
	return h.check()
}
