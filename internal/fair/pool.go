package fair

import (
	"context"
	"sync"
)

// A Pool is a number of places. Its methods are safe for concurrent use.
type Pool[K comparable] struct {
	mu      sync.Mutex // guards the fields below
	shares  sharing[K]
	waiting Line[K, *place]
	first   Line[K, *place] // go before those
	inRow   int             // of first that got a place since one of waiting did
}

// mostInRow is how many of first get places before one of waiting does.
const mostInRow = 3

// sharing is how places are shared.
type sharing[K comparable] interface {
	Room(who K, n int64) bool
	Add(who K, n int64)
	Less(a, b K) bool
	resize(limit, most int64)
}

type place struct{ ready chan struct{} }

// NewPool returns a Pool of limit places, of which one user alone has at most most.
func NewPool[K comparable](limit, most int) *Pool[K] {
	return &Pool[K]{shares: &Shares[K]{Limit: int64(limit), Most: int64(most)}}
}

// NewTieredPool returns a Pool of limit places, of which one host alone has at most most, and one repository alone within.
func NewTieredPool(limit, most, within int) *Pool[User] {
	return &Pool[User]{
		shares:  &Tiers{Limit: int64(limit), Most: int64(most), Within: int64(within)},
		waiting: Line[User, *place]{Together: Together}, first: Line[User, *place]{Together: Together},
	}
}

// Resize changes how many places there are, and how many one user has at most. Those that are taken stay.
func (p *Pool[K]) Resize(limit, most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shares.resize(int64(limit), int64(most))
	p.grantLocked()
}

// Acquire waits for a place. release must be called once.
func (p *Pool[K]) Acquire(ctx context.Context, who K) (release func(), err error) {
	return p.acquire(ctx, who, &p.waiting)
}

// AcquireFirst waits for a place before those in Acquire, for what is soon done. Of four places that become free, those in Acquire
// get one all the same.
func (p *Pool[K]) AcquireFirst(ctx context.Context, who K) (release func(), err error) {
	return p.acquire(ctx, who, &p.first)
}

func (p *Pool[K]) acquire(ctx context.Context, who K, line *Line[K, *place]) (release func(), err error) {
	w := &place{make(chan struct{})}
	p.mu.Lock()
	line.Push(who, w)
	p.grantLocked()
	p.mu.Unlock()
	select {
	case <-w.ready:
		return func() { p.release(who) }, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	gone := line.Remove(who, w)
	p.mu.Unlock()
	if !gone { // granted meanwhile
		p.release(who)
	}
	return nil, context.Cause(ctx)
}

// Try returns a place if there is one for this user now.
func (p *Pool[K]) Try(who K) (release func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.shares.Room(who, 1) {
		return nil, false
	}
	p.shares.Add(who, 1)
	return func() { p.release(who) }, true
}

// Waiting returns how many wait in Acquire, and how many in AcquireFirst.
func (p *Pool[K]) Waiting() (waiting, first int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting.Len(), p.first.Len()
}

func (p *Pool[K]) release(who K) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shares.Add(who, -1)
	p.grantLocked()
}

func (p *Pool[K]) grantLocked() {
	for {
		before, after := &p.first, &p.waiting
		if p.inRow >= mostInRow {
			before, after = after, before
		}
		if !p.grantOneLocked(before) && !p.grantOneLocked(after) {
			return
		}
	}
}

func (p *Pool[K]) grantOneLocked(line *Line[K, *place]) bool {
	who, w, ok := line.First(p.shares.Less, func(who K, _ *place) bool { return p.shares.Room(who, 1) })
	if !ok {
		return false
	}
	line.Served(who)
	p.shares.Add(who, 1)
	close(w.ready)
	if p.inRow++; line == &p.waiting {
		p.inRow = 0
	}
	return true
}
