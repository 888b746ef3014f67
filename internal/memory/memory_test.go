package memory_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/internal/memory"
)

var users atomic.Int64

// acquire gets a share for a user who has no other.
func acquire(t *testing.T, b *memory.Budget, n int64) *memory.Share {
	t.Helper()
	s, err := b.Acquire(t.Context(), fair.User(fmt.Sprint(users.Add(1))), n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// unused fails the test unless a budget is nobody's.
func unused(t *testing.T, b *memory.Budget) {
	t.Helper()
	for _, n := range []int64{b.Limit() / 2, b.Limit() / 4} {
		s, ok := b.Try(fair.User(fmt.Sprint(users.Add(1))), n)
		if !ok {
			t.Error("not all was given back")
		}
		defer s.Release()
	}
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := memory.New(100)
		first, other := acquire(t, b, 50), acquire(t, b, 10)
		var mu sync.Mutex // guards got: two of them go on together
		var got []int64
		enough := make(chan struct{})
		for _, n := range []int64{20, 5, 66} { // 5 would fit, but came later
			go func() {
				s := acquire(t, b, n)
				mu.Lock()
				got = append(got, n)
				mu.Unlock()
				<-enough
				s.Release()
			}()
			synctest.Wait()
		}
		if len(got) > 0 {
			t.Errorf("%v went first", got)
		}
		if _, ok := b.Try("a", 1); ok {
			t.Error("somebody overtook those that wait")
		}
		first.Release()
		other.Release()
		synctest.Wait()
		if len(got) != 2 || got[0]+got[1] != 25 {
			t.Errorf("the first two went on as %v", got)
		}
		close(enough)
		synctest.Wait()
		if len(got) != 3 {
			t.Errorf("they went on as %v", got)
		}
	})
}

func TestBeyond(t *testing.T) {
	b := memory.New(100)
	if _, err := b.Acquire(t.Context(), "a", 67); !errors.Is(err, memory.ErrBeyond) {
		t.Error(err)
	}
	s := acquire(t, b, 66) // alone
	if err := s.Grow(t.Context(), 1); !errors.Is(err, memory.ErrBeyond) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Acquire(ctx, "a", 40); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	s.Release()
	s.Release()
	unused(t, b)
	var none *memory.Budget
	s, err := none.Acquire(t.Context(), "a", 1<<60)
	if err == nil {
		err = errors.Join(s.Grow(t.Context(), 1<<60), s.Keep(1))
	}
	if err != nil || none.Limit() != 0 {
		t.Error(err)
	}
	s.Release()
}

// TestGrow: those that grow wait for others as long as the end of those lets one of them go on.
func TestGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := memory.New(100)
		one, two := acquire(t, b, 30), acquire(t, b, 30)
		if err := one.Grow(t.Context(), 14); err != nil { // into the last quarter
			t.Fatal(err)
		}
		var err error
		go func() { err = two.Grow(t.Context(), 15) }()
		synctest.Wait()
		other := acquire(t, b, 5)
		if err := one.Grow(t.Context(), 10); !errors.Is(err, memory.ErrBusy) { // the other's end is of no use
			t.Errorf("both wait for each other: %v", err)
		}
		one.Release()
		synctest.Wait()
		if err != nil {
			t.Error(err)
		}
		two.Release()
		other.Release()
		unused(t, b)
	})
}

// TestKeep: what is kept leaves most of the budget to those that work.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := memory.New(100)
		one, two := acquire(t, b, 30), acquire(t, b, 30)
		if err := one.Keep(20); err != nil {
			t.Error(err)
		}
		if err := two.Keep(6); !errors.Is(err, memory.ErrBusy) {
			t.Error(err)
		}
		three := acquire(t, b, 25)
		var err error
		go func() { err = two.Grow(t.Context(), 20) }()
		synctest.Wait()
		if err := three.Grow(t.Context(), 20); !errors.Is(err, memory.ErrBusy) {
			t.Errorf("waits for what is kept: %v", err)
		}
		three.Release()
		synctest.Wait()
		if err != nil {
			t.Error(err)
		}
		two.Release()
		acquire(t, b, 50).Release()
		one.Release()
		unused(t, b)
	})
}

// TestKeepingIsNoEnd: those that grow no longer wait for what has become kept.
func TestKeepingIsNoEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := memory.New(100)
		one, two, three := acquire(t, b, 25), acquire(t, b, 25), acquire(t, b, 25)
		errs := make(chan error, 2)
		for _, s := range []*memory.Share{two, three} {
			go func() { errs <- s.Grow(t.Context(), 20) }()
			synctest.Wait()
		}
		if len(errs) > 0 {
			t.Errorf("it did not wait for what works: %v", <-errs)
		}
		if err := one.Keep(25); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if err := <-errs; !errors.Is(err, memory.ErrBusy) {
			t.Errorf("both wait for each other: %v", err)
		}
		three.Release()
		if err := <-errs; err != nil {
			t.Error(err)
		}
		two.Release()
		one.Release()
		unused(t, b)
	})
}

// TestHog: a user who never gives anything back gets half of the budget, and the others go on.
func TestHog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := memory.New(100)
		ctx, cancel := context.WithCancel(t.Context())
		var got atomic.Int64
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if _, err := b.Acquire(ctx, "hog", 10); err == nil {
					got.Add(10)
				}
			})
		}
		synctest.Wait()
		for range 3 {
			s, err := b.Acquire(t.Context(), "honest", 20)
			if err != nil {
				t.Fatal(err)
			}
			s.Release()
		}
		if _, ok := b.Try("honest", 10); ok {
			t.Error("somebody overtook those that wait")
		}
		cancel()
		all.Wait()
		if got.Load() != 50 {
			t.Errorf("it got %d of 100", got.Load())
		}
	})
}

// TestGrowingHog: users who grow as far as they can, and never give anything back, leave something to the next one, also of their own
// registry. One alone gets most of the budget.
func TestGrowingHog(t *testing.T) {
	for _, c := range []struct {
		hogs       []fair.User
		first      int64 // what the first hog has at least
		next       fair.User
		n, growing int64 // what is left to the next one
	}{
		{[]fair.User{"a/hog"}, 64, "b/honest", 20, 5},
		{[]fair.User{"a/hog"}, 64, "a/honest", 10, 2},
		{[]fair.User{"a/hog", "b/hog", "c/hog"}, 64, "d/honest", 1, 1},
	} {
		for _, step := range []int64{1, 4} {
			synctest.Test(t, func(t *testing.T) {
				b := memory.New(100)
				ctx, cancel := context.WithCancel(t.Context())
				got := make([]int64, len(c.hogs))
				var all sync.WaitGroup
				for i, who := range c.hogs {
					all.Go(func() {
						for n := min(10, 20/int64(i+1)); ; n = step {
							s, err := b.Acquire(ctx, who, n)
							if err != nil {
								return
							}
							for got[i] += n; s.Grow(ctx, step) == nil; got[i] += step {
							}
						}
					})
					synctest.Wait()
				}
				t.Logf("%v have %d", c.hogs, got)
				if got[0] < c.first {
					t.Errorf("the first has %d", got[0])
				}
				s, err := b.Acquire(t.Context(), c.next, c.n)
				if err == nil {
					err = s.Grow(t.Context(), c.growing)
				}
				if err != nil {
					t.Errorf("nothing is left beside %d: %v", got, err)
				}
				cancel()
				all.Wait()
			})
		}
	}
}

// TestLargeShares: one that asks for much and waits for those that never give anything back holds nobody up, and its turn comes when they
// have ended, however many have passed it.
func TestLargeShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := memory.New(100)
		slow := acquire(t, b, 40)
		got := make(chan *memory.Share, 1)
		go func() { got <- acquire(t, b, 50) }()
		synctest.Wait()
		passing := acquire(t, b, 8)
		for range 20 {
			next := acquire(t, b, 8)
			passing.Release()
			passing = next
		}
		if len(got) > 0 {
			t.Fatal("there was no room for the large one")
		}
		slow.Release()
		(<-got).Release()
		passing.Release()
		unused(t, b)
	})
}

// TestOneLarge: a share may have more than half, but not all: others go on beside it, whatever they ask for.
func TestOneLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := memory.New(100)
		large := acquire(t, b, 66)
		one, two := acquire(t, b, 10), acquire(t, b, 8)
		if err := one.Grow(t.Context(), 2); err != nil {
			t.Error(err)
		}
		large.Release()
		one.Release()
		two.Release()
		unused(t, b)
	})
}

// TestMany: whatever is asked for, no more is given than there is, and all get it.
func TestMany(t *testing.T) {
	b := memory.New(1000)
	var used atomic.Int64
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 200 {
				n := r.Int64N(400)
				s, err := b.Acquire(t.Context(), fair.User(fmt.Sprint(i%7)), n)
				if err != nil {
					t.Error(err)
					return
				}
				used.Add(n)
				if more := r.Int64N(400); s.Grow(t.Context(), more) == nil {
					used.Add(more)
					n += more
				}
				if now := used.Load(); now > 1000 {
					t.Errorf("%d bytes are in use", now)
				}
				used.Add(-n)
				s.Release()
			}
		})
	}
	all.Wait()
	unused(t, b)
}

// TestMore: what can be done without gets what a new share of its user's would, and no more; it is given back with the share.
func TestMore(t *testing.T) {
	b := memory.New(100) // three quarters for shares, half for one user alone
	one, err := b.Acquire(t.Context(), "one", 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		n  int64
		ok bool
	}{{30, true}, {30, false}, {10, true}, {1, false}} {
		if ok := one.More(c.n); ok != c.ok {
			t.Errorf("%d more: %v", c.n, ok)
		}
	}
	two, ok := b.Try("two", 15)
	if !ok || two.More(20) {
		t.Error("another user has what one may not have, and no more than there is")
	}
	one.Release()
	two.Release()
	unused(t, b)
	if none := (*memory.Share)(nil); !none.More(1 << 40) {
		t.Error("a budget without end has an end")
	}
}
