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
	// ErrBeyond says that something takes more than one alone may have.
	ErrBeyond = errors.New("more memory than [limits] memory allows")
	// ErrBusy says that a Share cannot grow now, and that waiting would be waiting for one another.
	ErrBusy = errors.New("other work holds the memory and waits for more, too: raise [limits] memory")
)

// A Budget is bytes of memory that several share. Each Share is some user's, a repository or a registry: those that have least go
// first. A user's own wait in the order in which they asked. A nil Budget has no end.
//
//	0     a quarter at most                     three quarters                        limit
//	| kept shares | new shares, and what they grow by | what they grow by beyond that |
//
// Kept shares belong to what is done and waits for its user, so nobody may wait for their end. What shares grow by counts as
// their user's. The last quarter is for growing, so that what has begun can end. Of either part one repository alone has two thirds at
// most, one registry alone four fifths, and with others less: one that never gives anything back leaves some of both to them.
//
// A new share of more than a quarter may wait for long. Others pass it meanwhile, into the last quarter alone: so it gets its turn,
// and the others theirs. So do they while one has more than half, which new shares alone may have: two thirds are the most.
type Budget struct {
	mu      sync.Mutex // guards the fields below, and those of all shares
	parts              // what is taken
	large   int        // shares that have more of the first part than is a user's
	growers []*waiter  // a share each
	queue   fair.Line[fair.User, *waiter]
}

type waiter struct {
	s     *Share
	n     int64
	ready chan struct{} // closed once n is taken, or refused
	err   error         // why it is refused
}

// parts are what is taken of a budget.
type parts struct {
	limit, kept int64
	first, last fair.Tiers // three quarters, and one
}

func newParts(limit int64) parts {
	of := func(n int64) fair.Tiers { return fair.Tiers{Limit: n, Most: n / 5 * 4, Within: n / 3 * 2} }
	return parts{limit: limit, first: of(limit - limit/4), last: of(limit / 4)}
}

func (p *parts) used() int64 { return p.kept + p.first.Used() + p.last.Used() }

// most is what one share may have at most.
func (p *parts) most() int64 { return p.first.Within + p.last.Within }

// room reports whether a new share fits.
func (p *parts) room(n int64) bool { return p.kept+p.first.Used()+n <= p.limit-p.limit/4 }

// pass reports whether a new share fits beside a large one that waits.
func (p *parts) pass(who fair.User, n int64) bool {
	return n <= p.limit/4 && p.used()+n <= p.limit && p.last.Fair(who, n)
}

// grow returns of which parts a user may have n more: of the first as much as there is.
func (p *parts) grow(who fair.User, n int64) (first, last int64, ok bool) {
	for step := n; step > 0; step /= 2 {
		for first+step <= n && p.room(first+step) && p.first.Fair(who, first+step) {
			first += step
		}
	}
	last = n - first
	return first, last, last == 0 || p.used()+n <= p.limit && p.last.Fair(who, last)
}

// add counts what a share has, or has more.
func (p *parts) add(who fair.User, first, last int64) {
	p.first.Add(who, first)
	p.last.Add(who, last)
}

// New returns a Budget of limit bytes.
func New(limit int64) *Budget {
	return &Budget{parts: newParts(limit), queue: fair.Line[fair.User, *waiter]{Together: fair.Together}}
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
	b           *Budget
	who         fair.User
	first, last int64 // of the parts, until it is kept
	kept        int64
	over        bool // it is kept, or released
}

func (s *Share) has() int64 { return s.first + s.last + s.kept }

// takeLocked gives a share more.
func (s *Share) takeLocked(first, last int64) {
	was := s.isLarge()
	s.first += first
	s.last += last
	s.b.add(s.who, first, last)
	if is := s.isLarge(); is && !was {
		s.b.large++
	} else if was && !is {
		s.b.large--
	}
}

func (s *Share) isLarge() bool { return s.first > s.b.first.Within }

// Acquire waits for n bytes for a user. Release must be called.
func (b *Budget) Acquire(ctx context.Context, who fair.User, n int64) (*Share, error) {
	if b == nil {
		return nil, nil
	}
	if n > b.most() {
		return nil, b.beyond(n)
	}
	w := &waiter{s: &Share{b: b, who: who}, n: n, ready: make(chan struct{})}
	b.mu.Lock()
	b.queue.Push(who, w)
	b.grantLocked()
	b.mu.Unlock()
	if err := b.wait(ctx, w, func() bool { return b.queue.Remove(who, w) }); err != nil {
		return nil, err
	}
	return w.s, nil
}

func (b *Budget) beyond(n int64) error {
	return fmt.Errorf("%d bytes (limit %d, of which one may have two thirds): %w", n, b.limit, ErrBeyond)
}

// Try returns a share of n bytes for a user if they are free and nobody waits.
func (b *Budget) Try(who fair.User, n int64) (s *Share, ok bool) {
	if b == nil {
		return nil, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.most() || b.queue.Len() > 0 || !b.first.Room(who, n) || !b.room(n) {
		return nil, false
	}
	s = &Share{b: b, who: who}
	s.takeLocked(n, 0)
	return s, true
}

// grantLocked lets go on who can: first those that have something already.
func (b *Budget) grantLocked() {
	b.growers = slices.DeleteFunc(b.growers, func(w *waiter) bool {
		first, last, ok := b.grow(w.s.who, w.n)
		if ok {
			w.s.takeLocked(first, last)
			close(w.ready)
		}
		return ok
	})
	for {
		who, w, ok := b.queue.First(b.first.Less, func(who fair.User, w *waiter) bool {
			return b.first.Of(who) == 0 || b.first.Room(who, w.n)
		})
		if !ok {
			break
		}
		if !b.room(w.n) { // nobody overtakes whose turn it is, unless it may wait for long
			if w.n > b.limit/4 || b.large > 0 {
				b.passLocked()
			}
			break
		}
		b.serveLocked(who, w, w.n, 0)
	}
	if n := len(b.growers); n > 0 && b.stuckLocked() {
		w := b.growers[n-1]
		b.growers = b.growers[:n-1]
		w.err = fmt.Errorf("%d bytes beside %d of others (limit %d): %w", w.s.has()+w.n, b.used()-w.s.has(), b.limit, ErrBusy)
		close(w.ready)
	}
}

func (b *Budget) serveLocked(who fair.User, w *waiter, first, last int64) {
	b.queue.Served(who)
	w.s.takeLocked(first, last)
	close(w.ready)
}

// passLocked lets go on who can of those that wait behind a large share.
func (b *Budget) passLocked() {
	for {
		who, w, ok := b.queue.First(b.last.Less, func(who fair.User, w *waiter) bool { return b.pass(who, w.n) })
		if !ok {
			return
		}
		b.serveLocked(who, w, 0, w.n)
	}
}

// stuckLocked reports whether those that grow wait for one another: none of them could go on when all others have ended.
func (b *Budget) stuckLocked() bool {
	left := newParts(b.limit)
	left.kept = b.kept
	for _, w := range b.growers {
		left.add(w.s.who, w.s.first, w.s.last)
	}
	return !slices.ContainsFunc(b.growers, func(w *waiter) bool {
		_, _, ok := left.grow(w.s.who, w.n)
		return ok
	})
}

// wait returns when w is granted or refused. If ctx ends before that, w leaves; leave reports whether it still waited.
func (b *Budget) wait(ctx context.Context, w *waiter, leave func() bool) error {
	select {
	case <-w.ready:
		return w.err
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !leave() {
		return w.err // granted meanwhile: who has it notices that ctx has ended
	}
	b.grantLocked()
	return fmt.Errorf("wait for %d bytes of memory: %w", w.n, context.Cause(ctx))
}

// Grow waits for n bytes more. It fails if all that it could wait for wait for more, too.
func (s *Share) Grow(ctx context.Context, n int64) error {
	if s == nil {
		return nil
	}
	b := s.b
	b.mu.Lock()
	alone := newParts(b.limit)
	alone.add(s.who, s.first, s.last)
	if _, _, ok := alone.grow(s.who, n); !ok || s.has()+n > b.most() {
		b.mu.Unlock()
		return b.beyond(s.has() + n)
	}
	w := &waiter{s: s, n: n, ready: make(chan struct{})}
	b.growers = append(b.growers, w)
	b.grantLocked()
	b.mu.Unlock()
	return b.wait(ctx, w, func() bool {
		n := len(b.growers)
		b.growers = slices.DeleteFunc(b.growers, func(g *waiter) bool { return g == w })
		return len(b.growers) < n
	})
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
	if !b.room(n) || !b.first.Room(s.who, n) {
		return false
	}
	s.takeLocked(n, 0)
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
	if s.over {
		return nil
	}
	n = min(n, s.has())
	if b.kept+n > b.limit/4 {
		return fmt.Errorf("%d bytes to be kept, beside %d of others (limit %d): %w", n, b.kept, b.limit/4, ErrBusy)
	}
	s.over = true
	s.takeLocked(-s.first, -s.last)
	s.kept = n
	b.kept += n
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
	s.over = true
	s.takeLocked(-s.first, -s.last)
	b.kept -= s.kept
	s.kept = 0
	b.grantLocked()
}
