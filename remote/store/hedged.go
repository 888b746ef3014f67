package store

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// A Hedge makes small requests a second time, at the same time as the first, where that takes longer than they usually do: one
// connection, or one of a server's disks, may stall alone. Only requests that may be carried out twice are made twice: reads, and
// swaps from one version, of which at most one is carried out. These are few, so that a store which is slow as a whole is not asked
// twice.
type Hedge struct {
	Around
	reads, swaps usual

	mu     sync.Mutex // guards credit
	credit float64    // second requests that may be made
}

const (
	hedgedBytes = 64 << 10 // of a small request
	hedgeShare  = 0.05     // second requests for each first one
	hedgeCredit = 5        // most that may be saved up
)

// Hedged returns a Store that makes small requests of another one a second time.
func Hedged(s Store) *Hedge { return &Hedge{Around: Around{s}, credit: 1} }

// Get implements Store. What is asked for whole is small: heads, leases, marks.
func (h *Hedge) Get(ctx context.Context, key string, off, n int64) ([]byte, Object, error) {
	if n > hedgedBytes {
		return h.Store.Get(ctx, key, off, n)
	}
	a := hedged(ctx, h, &h.reads, func(ctx context.Context) (a answer) {
		a.bytes, a.object, a.err = h.Store.Get(ctx, key, off, n)
		return a
	})
	return a.bytes, a.object, a.err
}

// Head implements Store.
func (h *Hedge) Head(ctx context.Context, key string) (Object, error) {
	a := hedged(ctx, h, &h.reads, func(ctx context.Context) (a answer) {
		a.object, a.err = h.Store.Head(ctx, key)
		return a
	})
	return a.object, a.err
}

// PutIfMatch implements Store. ErrChanged may be due to the same request of before, as where an answer is lost.
func (h *Hedge) PutIfMatch(ctx context.Context, key string, p []byte, version string) (Object, error) {
	if len(p) > hedgedBytes {
		return h.Store.PutIfMatch(ctx, key, p, version)
	}
	p = bytes.Clone(p) // the caller has its own again as soon as one has been carried out
	a := hedged(ctx, h, &h.swaps, func(ctx context.Context) (a answer) {
		a.object, a.err = h.Store.PutIfMatch(ctx, key, p, version)
		return a
	})
	return a.object, a.err
}

// answer is what a request came to.
type answer struct {
	bytes  []byte
	object Object
	err    error
}

// decides reports whether an answer is one, whatever becomes of the other request.
func (a answer) decides() bool { return a.err == nil || errors.Is(a.err, ErrNoObject) }

// hedged makes a request, and a second one if the first takes long.
func hedged(ctx context.Context, h *Hedge, u *usual, try func(context.Context) answer) answer {
	ctx, cancel := context.WithCancel(ctx)
	var started sync.WaitGroup
	defer started.Wait() // soon: what is left has no context any more
	defer cancel()
	begin := time.Now()
	answers := make(chan answer, 2)
	ask := func() { started.Go(func() { answers <- try(ctx) }) }
	ask()
	underWay := 1
	long := time.NewTimer(u.long())
	defer long.Stop()
	h.earn()
	var last answer
	for underWay > 0 {
		select {
		case last = <-answers:
			underWay--
			if last.decides() {
				u.add(time.Since(begin))
				return last
			}
			long.Reset(u.long()) // for which the other one may still say better
		case <-long.C:
			if last.err != nil {
				return last
			}
			if h.spend() {
				ask()
				underWay++
			}
		}
	}
	return last
}

func (h *Hedge) earn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.credit = min(h.credit+hedgeShare, hedgeCredit)
}

func (h *Hedge) spend() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.credit < 1 {
		return false
	}
	h.credit--
	return true
}

// usual knows how long requests of one kind take.
type usual struct {
	mu   sync.Mutex // guards the fields below
	took []time.Duration
	next int
	is   time.Duration // for most of them; 0 if that is not known
}

const (
	usualOf   = 128 // requests
	usualNeed = 16  // of them, before anything is usual; and after how many it is looked again
	leastLong = 5 * time.Millisecond
	longAtAll = time.Second // while nothing is known
)

// add notes how long one took.
func (u *usual) add(took time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.took) < usualOf {
		u.took = append(u.took, took)
	} else {
		u.took[u.next%usualOf] = took
	}
	if u.next++; u.next%usualNeed == 0 {
		sorted := slices.Sorted(slices.Values(u.took))
		u.is = sorted[len(sorted)*95/100]
	}
}

// long returns after which time one takes longer than nearly all.
func (u *usual) long() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.is == 0 {
		return longAtAll
	}
	return max(2*u.is, leastLong)
}
