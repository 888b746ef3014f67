package nbd

import "sync"

// budget is memory that the requests of one connection may have at once. A request that is larger than all
// of it has it alone.
type budget struct {
	total int // bytes

	mu     sync.Mutex // guards the fields below
	free   int        // bytes, below 0 while a request has more than all
	freed  sync.Cond  // somebody waits for more, or it was closed
	closed bool
}

func newBudget(bytes int) *budget {
	b := &budget{total: bytes, free: bytes}
	b.freed.L = &b.mu
	return b
}

func (b *budget) fitsLocked(n int) bool { return n <= b.free || b.free == b.total }

// try takes n bytes if they are there.
func (b *budget) try(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.fitsLocked(n) {
		return false
	}
	b.free -= n
	return true
}

// take waits for n bytes. It returns false once the budget is closed.
func (b *budget) take(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.fitsLocked(n) && !b.closed {
		b.freed.Wait()
	}
	if b.closed {
		return false
	}
	b.free -= n
	return true
}

func (b *budget) give(n int) {
	b.mu.Lock()
	b.free += n
	b.mu.Unlock()
	b.freed.Broadcast()
}

// close lets nobody wait any more.
func (b *budget) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.freed.Broadcast()
}
