package fair_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/remora-storage/remora/internal/fair"
)

// TestShares: one user alone gets most of it, and however many follow that never give anything back, the next one gets some.
func TestShares(t *testing.T) {
	for _, c := range []struct {
		limit, most int64
		users       int // that hold on to all that they can get, before one who gets nothing
	}{{24, 18, 4}, {8192, 4096, 14}, {64, 12, 20}, {2, 1, 2}} {
		s := fair.Shares[int]{Limit: c.limit, Most: c.most}
		var got []int64
		for who := 0; s.Room(who, 1); who++ {
			for s.Room(who, 1) {
				s.Add(who, 1)
			}
			got = append(got, s.Of(who))
		}
		t.Logf("of %d, at most %d: %v", c.limit, c.most, got)
		if got[0] != c.most || len(got) < c.users || s.Used() != c.limit {
			t.Errorf("of %d, at most %d: %d users got %v", c.limit, c.most, len(got), got)
		}
		for who := range got {
			s.Add(who, -s.Of(who))
		}
		if s.Used() != 0 || !s.Room(0, c.limit) {
			t.Errorf("%d are in use by nobody", s.Used())
		}
	}
}

// TestFair: however many come and take in one piece what they may have, the next one gets some.
func TestFair(t *testing.T) {
	s, tiers := fair.Shares[int]{Limit: 1000, Most: 800}, fair.Tiers{Limit: 1000, Most: 800, Within: 600}
	for who := range 4 {
		n, of := int64(1000), fair.User(fmt.Sprintf("%d/%d", who/2, who))
		for ; !s.Fair(who, n); n-- {
		}
		s.Add(who, n)
		for n = 1000; !tiers.Fair(of, n); n-- {
		}
		tiers.Add(of, n)
		t.Logf("%d of %d; %d of %d", s.Of(who), s.Used(), tiers.Of(of), tiers.Used())
		if s.Of(who) == 0 || tiers.Of(of) == 0 || s.Used() == 1000 || tiers.Used() == 1000 {
			t.Errorf("the %dth got %d and %d, and %d and %d are taken", who, s.Of(who), tiers.Of(of), s.Used(), tiers.Used())
		}
	}
}

// queue notes in which order places are given to those that wait for one, and give it back.
type queue struct {
	all sync.WaitGroup

	mu    sync.Mutex // guards order
	order string     // of marks
}

// wait has somebody wait for a place.
func (q *queue) wait(t *testing.T, mark string, acquire func(context.Context, string) (func(), error), who string) {
	q.all.Go(func() {
		release, err := acquire(t.Context(), who)
		if err != nil {
			t.Error(err)
			return
		}
		q.mu.Lock()
		q.order += mark
		q.mu.Unlock()
		release()
	})
	synctest.Wait()
}

// TestTurns: those that have least go first, those that have the same take turns, and each user's own go in order.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fair.NewPool[string](1, 1)
		release, err := p.Acquire(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		var q queue
		for _, who := range []string{"a", "a", "a", "b", "b", "c"} {
			q.wait(t, who, p.Acquire, who)
		}
		if _, ok := p.Try("d"); ok {
			t.Error("there was no place")
		}
		release()
		q.all.Wait()
		if want := "abcaba"; q.order != want {
			t.Errorf("they went as %s, want %s", q.order, want)
		}
	})
}

// TestFirst: those that go first get the next place, and hold up the others by three places at most.
func TestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fair.NewPool[string](1, 1)
		release, err := p.Acquire(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		var q queue
		for _, who := range []string{"a", "b", "a"} {
			q.wait(t, "w", p.Acquire, who)
		}
		for i := range 8 {
			q.wait(t, "f", p.AcquireFirst, []string{"a", "b"}[i%2])
		}
		ctx, cancel := context.WithCancel(t.Context())
		q.all.Go(func() {
			if _, err := p.AcquireFirst(ctx, "c"); !errors.Is(err, context.Canceled) {
				t.Errorf("it left the line: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		release()
		q.all.Wait()
		if want := "fffwfffwffw"; q.order != want {
			t.Errorf("they went as %s, want %s", q.order, want)
		}
	})
}

// TestHog: a user that never gives anything back leaves places, and those that leave the line hold up nobody.
func TestHog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fair.NewPool[string](8, 6)
		ctx, cancel := context.WithCancelCause(t.Context())
		var got, left atomic.Int64
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if _, err := p.Acquire(ctx, "hog"); err == nil {
					got.Add(1)
				} else if errors.Is(err, errGone) {
					left.Add(1)
				}
			})
		}
		synctest.Wait()
		for range 3 {
			release, err := p.Acquire(t.Context(), "honest")
			if err != nil {
				t.Fatal(err)
			}
			release()
		}
		cancel(errGone)
		all.Wait()
		if got.Load() != 6 || left.Load() != 14 {
			t.Errorf("it got %d places and left the line %d times", got.Load(), left.Load())
		}
	})
}

var errGone = errors.New("gone")

// TestPool: whoever comes and goes, no more places are taken than there are, none is lost, and nobody waits for ever.
func TestPool(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	p := fair.NewPool[string](10, 7)
	var used atomic.Int64
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 300 {
				who := fmt.Sprint(r.IntN(5))
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(4) == 0 {
					go cancel()
				}
				acquire := p.Acquire
				if r.IntN(3) == 0 {
					acquire = p.AcquireFirst
				}
				if release, err := acquire(ctx, who); err == nil {
					if n := used.Add(1); n > 10 {
						t.Errorf("%d places are taken", n)
					}
					used.Add(-1)
					release()
				}
				cancel()
			}
		})
	}
	all.Wait()
	for who := range 10 {
		if _, ok := p.Try(fmt.Sprint(who)); !ok {
			t.Fatalf("only %d places are left", who)
		}
	}
}

// TestTiers: hosts share what there is, and repositories what their host may have: one that never gives anything back leaves more to
// other hosts than to others of its own, and something to both.
func TestTiers(t *testing.T) {
	for _, c := range []struct {
		limit, most, within int64
		users               []fair.User // that hold on to all that they can get, one after the other
		want                []int64
	}{
		{36, 24, 12, []fair.User{"a/1", "a/2", "a/3", "b/1", "b/2", "c"}, []int64{12, 6, 3, 5, 2, 2}},
		{36, 24, 12, []fair.User{"a/1", "b/1", "c/1", "a/2"}, []int64{12, 8, 5, 1}},
		{48, 32, 16, []fair.User{"a/1", "a/2", "b"}, []int64{16, 8, 8}},
		{75, 60, 50, []fair.User{"a/1", "a/2", "b/1"}, []int64{50, 8, 11}},
		{36, 24, 12, []fair.User{"a", "a/1", "b"}, []int64{12, 6, 6}}, // a registry itself is one user of its own
	} {
		s := fair.Tiers{Limit: c.limit, Most: c.most, Within: c.within}
		var got []int64
		for _, who := range c.users {
			for s.Room(who, 1) {
				s.Add(who, 1)
			}
			got = append(got, s.Of(who))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("of %d, %d a host, %d a repository: %v got %v, want %v", c.limit, c.most, c.within, c.users, got, c.want)
		}
		for _, who := range c.users {
			s.Add(who, -s.Of(who))
		}
		if s.Used() != 0 || !s.Room("a/1", c.limit) {
			t.Errorf("%d are in use by nobody", s.Used())
		}
	}
}

// TestTieredTurns: hosts take turns, however many repositories of one wait, and so do the repositories of a host.
func TestTieredTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := fair.NewTieredPool(1, 1, 1)
		release, err := p.Acquire(t.Context(), "a/1")
		if err != nil {
			t.Fatal(err)
		}
		var q queue
		for _, w := range []struct {
			mark string
			who  fair.User
		}{{"A", "a/1"}, {"A", "a/1"}, {"a", "a/2"}, {"å", "a/3"}, {"B", "b/1"}, {"b", "b/2"}, {"C", "c"}} {
			q.wait(t, w.mark, func(ctx context.Context, _ string) (func(), error) { return p.Acquire(ctx, w.who) }, "")
		}
		release()
		q.all.Wait()
		if want := "ABCabåA"; q.order != want {
			t.Errorf("they went as %s, want %s", q.order, want)
		}
	})
}
