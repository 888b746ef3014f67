package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Errors of a Budget.
var (
	// ErrBeyond says that something takes more than the whole budget.
	ErrBeyond = errors.New("more memory than [limits] memory allows")
	// ErrBusy says that a Share cannot grow now, and that waiting would be waiting for one another.
	ErrBusy = errors.New("memory is taken by others that wait for more, too: [limits] memory allows no more")
)

// A Budget is bytes of memory that several share. Who asks waits behind all that asked before. A nil Budget has no end.
//
//	0     a quarter at most        three quarters        limit
//	| kept shares | shares: wait for room up to here | only shares that grow |
//
// Kept shares belong to what is done and waits for its user, so nobody may wait for their end. Shares that grow have the last
// quarter to themselves, so that what has begun can end.
type Budget struct {
	limit int64

	mu      sync.Mutex // guards the fields below, and those of all shares
	used    int64      // by all shares
	kept    int64      // by those that are kept
	holders int        // shares that are not kept
	growers []*waiter  // a holder each
	queue   []*waiter
}

type waiter struct {
	n     int64
	ready chan struct{} // closed once n is taken
}

// New returns a Budget of limit bytes.
func New(limit int64) *Budget { return &Budget{limit: limit} }

// Limit returns the bytes of the budget; 0 if it has no end.
func (b *Budget) Limit() int64 {
	if b == nil {
		return 0
	}
	return b.limit
}

// A Share is what somebody has of a Budget. A nil Share is of one without end.
type Share struct {
	b    *Budget
	n    int64
	kept bool
}

// Acquire waits for n bytes. Release must be called.
func (b *Budget) Acquire(ctx context.Context, n int64) (*Share, error) {
	if b == nil {
		return nil, nil
	}
	if n > b.limit {
		return nil, fmt.Errorf("%d bytes (limit %d): %w", n, b.limit, ErrBeyond)
	}
	w := &waiter{n, make(chan struct{})}
	b.mu.Lock()
	b.queue = append(b.queue, w)
	b.grantLocked()
	b.mu.Unlock()
	if err := b.wait(ctx, w, &b.queue); err != nil {
		return nil, err
	}
	return &Share{b: b, n: n}, nil
}

// Try returns a share of n bytes if they are free and nobody waits.
func (b *Budget) Try(n int64) (s *Share, ok bool) {
	if b == nil {
		return nil, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) > 0 || !b.roomLocked(n) {
		return nil, false
	}
	b.used += n
	b.holders++
	return &Share{b: b, n: n}, true
}

// roomLocked reports whether a new share fits. One of any size may be alone.
func (b *Budget) roomLocked(n int64) bool {
	return b.used+n <= b.limit-b.limit/4 || b.holders == 0 && b.used+n <= b.limit
}

// grantLocked lets go on who can: first those that have something already.
func (b *Budget) grantLocked() {
	b.growers = slices.DeleteFunc(b.growers, func(w *waiter) bool {
		if b.used+w.n > b.limit {
			return false
		}
		b.used += w.n
		close(w.ready)
		return true
	})
	for len(b.queue) > 0 && b.roomLocked(b.queue[0].n) {
		w := b.queue[0]
		b.queue = b.queue[1:]
		b.used += w.n
		b.holders++
		close(w.ready)
	}
}

// wait returns when w is granted. If ctx ends before that, w leaves its list.
func (b *Budget) wait(ctx context.Context, w *waiter, list *[]*waiter) error {
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(*list, w)
	if i < 0 {
		return nil // granted meanwhile: who has it notices that ctx has ended
	}
	*list = slices.Delete(*list, i, i+1)
	b.grantLocked()
	return fmt.Errorf("wait for %d bytes of memory: %w", w.n, context.Cause(ctx))
}

// Grow waits for n bytes more. It fails if all other shares wait for more, too.
func (s *Share) Grow(ctx context.Context, n int64) error {
	if s == nil {
		return nil
	}
	b := s.b
	b.mu.Lock()
	switch {
	case s.n+n > b.limit:
		b.mu.Unlock()
		return fmt.Errorf("%d bytes (limit %d): %w", s.n+n, b.limit, ErrBeyond)
	case b.used+n <= b.limit:
		b.used += n
		s.n += n
		b.mu.Unlock()
		return nil
	case len(b.growers)+1 >= b.holders:
		b.mu.Unlock()
		return fmt.Errorf("%d bytes beside %d of others (limit %d): %w", s.n+n, b.used-s.n, b.limit, ErrBusy)
	}
	w := &waiter{n, make(chan struct{})}
	b.growers = append(b.growers, w)
	b.mu.Unlock()
	if err := b.wait(ctx, w, &b.growers); err != nil {
		return err
	}
	b.mu.Lock()
	s.n += n
	b.mu.Unlock()
	return nil
}

// Keep makes the share one of n bytes, if that is less, that nobody waits for the end of. It fails if a quarter of the budget
// is kept already.
func (s *Share) Keep(n int64) error {
	if s == nil {
		return nil
	}
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.kept {
		return nil
	}
	n = min(n, s.n)
	if b.kept+n > b.limit/4 {
		return fmt.Errorf("%d bytes to be kept, beside %d of others (limit %d): %w", n, b.kept, b.limit/4, ErrBusy)
	}
	s.kept = true
	b.kept += n
	b.used -= s.n - n
	s.n = n
	b.holders--
	b.grantLocked()
	return nil
}

// Release gives the share back. Later calls do nothing.
func (s *Share) Release() {
	if s == nil {
		return
	}
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.n < 0 {
		return
	}
	b.used -= s.n
	if s.kept {
		b.kept -= s.n
	} else {
		b.holders--
	}
	s.n = -1
	b.grantLocked()
}
