package budget_test

import (
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/remora-storage/remora/cache/budget"
)

// holder has parts of one byte each.
type holder struct {
	mu    sync.Mutex
	parts map[uint32]uint32 // when each was used
	gone  []uint32
	kept  bool // nothing goes
}

func (h *holder) ID() string { return "holder" }

func (h *holder) Drop(parts []uint32) (freed int64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range parts {
		if _, ok := h.parts[p]; ok && !h.kept {
			delete(h.parts, p)
			h.gone = append(h.gone, p)
			freed++
		}
	}
	return freed, nil
}

func (h *holder) victims(all []budget.Victim) []budget.Victim {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, used := range h.parts {
		all = append(all, budget.Victim{Of: h, Part: p, Used: used, Size: 1})
	}
	return all
}

// TestLeastRecentlyUsed: what nobody uses goes first, then what was used least recently, and no more than is needed.
func TestLeastRecentlyUsed(t *testing.T) {
	b := budget.New(10, slog.New(slog.DiscardHandler))
	idle := int64(2)
	h := &holder{parts: map[uint32]uint32{}}
	b.Evicts(func() (n int64) { n, idle = idle, 0; return n }, h.victims)
	for p := range uint32(8) {
		h.parts[p] = 100 - p
	}
	b.Add(10)
	if b.TryReserve(1) != 1 {
		t.Error("there was room")
	}
	if !b.Reserve(2) || len(h.gone) > 0 {
		t.Errorf("%v went beside what nobody uses", h.gone)
	}
	if !b.Reserve(3) || !slices.Equal(h.gone, []uint32{7, 6, 5}) {
		t.Errorf("%v went", h.gone)
	}
	if used, limit := b.Usage(); used != 10 || limit != 10 {
		t.Errorf("%d of %d bytes are used", used, limit)
	}
	h.kept = true
	if b.Reserve(1) {
		t.Error("there was room though nothing went")
	}
	h.kept = false
	if n := b.EvictAll(); n != 5 || len(h.parts) > 0 {
		t.Errorf("%d bytes went, %d are left", n, len(h.parts))
	}
}

// TestNeverExceeded: many that reserve beside each other have no more than the limit together.
func TestNeverExceeded(t *testing.T) {
	const limit = 100
	b := budget.New(limit, slog.New(slog.DiscardHandler))
	h := &holder{parts: map[uint32]uint32{}}
	b.Evicts(func() int64 { return 0 }, h.victims)
	var started sync.WaitGroup
	for w := range uint32(8) {
		started.Go(func() {
			for i := range uint32(500) {
				if !b.Reserve(1) {
					t.Error("no room, though all may go")
				}
				h.mu.Lock()
				h.parts[w<<16|i] = i
				n := len(h.parts)
				h.mu.Unlock()
				if n > limit {
					t.Errorf("%d bytes are there", n)
				}
			}
		})
	}
	started.Wait()
	if used, _ := b.Usage(); used != int64(len(h.parts)) {
		t.Errorf("%d bytes are counted, %d are there", used, len(h.parts))
	}
}
