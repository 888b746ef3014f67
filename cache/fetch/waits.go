package fetch

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remora-storage/remora/blockdev"
)

// A Wait is a read that waits for its bytes.
type Wait struct {
	ID       string // of the image
	Off, Len int64
	PID      int // of the process, 0 if it is not known
	Since    time.Time
	Trouble  error // why the source does not answer; nil if it is only slow
}

// waits are the reads that wait now.
type waits struct {
	last atomic.Int64 // when the last one began or ended, in nanoseconds

	mu  sync.Mutex // guards all
	all map[*waitEntry]struct{}
}

type waitEntry struct {
	f        *Fetcher
	off, len int64
	pid      int
	since    time.Time
}

// enter notes a read and returns what ends it.
func (w *waits) enter(ctx context.Context, f *Fetcher, off, n int64) (leave func()) {
	e := &waitEntry{f: f, off: off, len: n, pid: blockdev.Caller(ctx), since: time.Now()}
	w.last.Store(e.since.UnixNano())
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[*waitEntry]struct{}{}
	}
	w.all[e] = struct{}{}
	return func() {
		w.last.Store(time.Now().UnixNano())
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all, e)
	}
}

// Waiting returns the reads that have waited for longer than some time, the oldest first.
func (p *Pool) Waiting(longer time.Duration) []Wait {
	p.waits.mu.Lock()
	var entries []*waitEntry
	for e := range p.waits.all {
		if time.Since(e.since) > longer {
			entries = append(entries, e)
		}
	}
	p.waits.mu.Unlock()
	var all []Wait
	for _, e := range entries {
		e.f.mu.Lock()
		trouble := e.f.trouble
		e.f.mu.Unlock()
		all = append(all, Wait{ID: e.f.img.ID(), Off: e.off, Len: e.len, PID: e.pid, Since: e.since, Trouble: trouble})
	}
	slices.SortFunc(all, func(a, b Wait) int { return cmp.Compare(a.Since.UnixNano(), b.Since.UnixNano()) })
	return all
}

// Busy reports whether a read has waited within some time.
func (p *Pool) Busy(within time.Duration) bool {
	return time.Since(time.Unix(0, p.waits.last.Load())) < within
}
