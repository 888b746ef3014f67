package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/remora-storage/remora/internal/fair"
)

// Errors of a Budget.
var (
	// ErrBeyond says that something takes more than the whole budget.
	ErrBeyond = errors.New("more memory than [limits] memory allows")
	// ErrBusy says that a Share cannot grow now, and that waiting would be waiting for one another.
	ErrBusy = errors.New("other work holds the memory and waits for more, too: raise [limits] memory")
)

// A Budget is bytes of memory that several share. Each Share is some user's, a repository or a registry: those that have least go
// first. One repository alone has at most half, and one registry alone three fifths. A user's own wait in the order in which
// they asked. A nil Budget has no end.
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
	shares  fair.Tiers // what users have; what shares have grown by is not counted
	queue   fair.Line[fair.User, *waiter]
}

type waiter struct {
	n     int64
	ready chan struct{} // closed once n is taken
}

// New returns a Budget of limit bytes.
func New(limit int64) *Budget {
	return &Budget{
		limit: limit, shares: fair.Tiers{Limit: limit - limit/4, Most: limit / 5 * 3, Within: limit / 2},
		queue: fair.Line[fair.User, *waiter]{Together: fair.Together},
	}
}

// Limit returns the bytes of the budget; 0 if it has no end.
func (b *Budget) Limit() int64 {
	if b == nil {
		return 0
	}
	return b.limit
}

// A Share is what somebody has of a Budget. A nil Share is of one without end.
type Share struct {
	b     *Budget
	who   fair.User
	n     int64
	asked int64 // of the user's, as it is counted
	kept  bool
}

// Acquire waits for n bytes for a user. Release must be called.
func (b *Budget) Acquire(ctx context.Context, who fair.User, n int64) (*Share, error) {
	if b == nil {
		return nil, nil
	}
	if n > b.limit {
		return nil, fmt.Errorf("%d bytes (limit %d): %w", n, b.limit, ErrBeyond)
	}
	w := &waiter{n, make(chan struct{})}
	b.mu.Lock()
	b.queue.Push(who, w)
	b.grantLocked()
	b.mu.Unlock()
	if err := b.wait(ctx, w, func() bool { return b.queue.Remove(who, w) }); err != nil {
		return nil, err
	}
	return &Share{b: b, who: who, n: n, asked: n}, nil
}

// Try returns a share of n bytes for a user if they are free and nobody waits.
func (b *Budget) Try(who fair.User, n int64) (s *Share, ok bool) {
	if b == nil {
		return nil, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.queue.Len() > 0 || !b.shares.Room(who, n) || !b.roomLocked(n) {
		return nil, false
	}
	b.takeLocked(who, n)
	return &Share{b: b, who: who, n: n, asked: n}, true
}

func (b *Budget) takeLocked(who fair.User, n int64) {
	b.used += n
	b.holders++
	b.shares.Add(who, n)
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
	for {
		who, w, ok := b.queue.First(b.shares.Less, func(who fair.User, w *waiter) bool {
			return b.holders == 0 || b.shares.Of(who) == 0 || b.shares.Room(who, w.n)
		})
		if !ok || !b.roomLocked(w.n) { // nobody overtakes whose turn it is
			return
		}
		b.queue.Served(who)
		b.takeLocked(who, w.n)
		close(w.ready)
	}
}

// wait returns when w is granted. If ctx ends before that, w leaves; leave reports whether it still waited.
func (b *Budget) wait(ctx context.Context, w *waiter, leave func() bool) error {
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !leave() {
		return nil // granted meanwhile: who has it notices that ctx has ended
	}
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
	if err := b.wait(ctx, w, func() bool {
		n := len(b.growers)
		b.growers = slices.DeleteFunc(b.growers, func(g *waiter) bool { return g == w })
		return len(b.growers) < n
	}); err != nil {
		return err
	}
	b.mu.Lock()
	s.n += n
	b.mu.Unlock()
	return nil
}

// More reports whether there are n bytes more for what can be done without: as many as a new share of the user's could have. The
// share has them then.
func (s *Share) More(n int64) bool {
	if s == nil {
		return true
	}
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > b.limit-b.limit/4 || !b.shares.Room(s.who, n) {
		return false
	}
	b.used += n
	b.shares.Add(s.who, n)
	s.n += n
	s.asked += n
	return true
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
	b.shares.Add(s.who, -s.asked)
	s.asked = 0
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
	b.shares.Add(s.who, -s.asked)
	if s.kept {
		b.kept -= s.n
	} else {
		b.holders--
	}
	s.n = -1
	b.grantLocked()
}
