package store_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/conformance/suite"
	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// late is a Store whose answers take their time.
type late struct {
	store.Around
	asked atomic.Int32

	mu   sync.Mutex // guards the field below
	take func() time.Duration
}

func (l *late) wait(ctx context.Context) error {
	l.asked.Add(1)
	l.mu.Lock()
	t := time.NewTimer(l.take())
	l.mu.Unlock()
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *late) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	if err := l.wait(ctx); err != nil {
		return nil, store.Object{}, err
	}
	return l.Store.Get(ctx, key, off, n)
}

// PutIfMatch is carried out, and its answer is late.
func (l *late) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	o, err := l.Store.PutIfMatch(ctx, key, p, version)
	if werr := l.wait(ctx); werr != nil {
		return store.Object{}, werr
	}
	return o, err
}

const quick = 10 * time.Millisecond

// newLate returns a Store with an object k, whose answers are quick, but for those that are said.
func newLate(t testing.TB, slow ...time.Duration) (*late, string) {
	t.Helper()
	s := simstore.New(rand.New(rand.NewPCG(1, 1)))
	o, err := s.Put(t.Context(), "k", []byte("v"))
	if err != nil {
		t.Fatal(err)
	}
	return &late{Around: store.Around{Store: s}, take: func() time.Duration {
		if len(slow) == 0 {
			return quick
		}
		defer func() { slow = slow[1:] }()
		return slow[0]
	}}, o.Version
}

// train has a Hedge learn what is usual.
func train(t testing.TB, h *store.Hedge) {
	t.Helper()
	for range 32 {
		if _, _, err := h.Get(t.Context(), "k", 0, -1); err != nil {
			t.Fatal(err)
		}
	}
}

func (l *late) next(all ...time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.take
	l.take = func() time.Duration {
		if len(all) == 0 {
			return was()
		}
		defer func() { all = all[1:] }()
		return all[0]
	}
	l.asked.Store(0)
}

func TestHedgedStore(t *testing.T) {
	suite.Store(t, func(*testing.T) store.Store { return store.Hedged(simstore.New(rand.New(rand.NewPCG(1, 1)))) })
}

// TestHedged: a read that takes longer than usual is made a second time, once, and the first answer counts. What is quick, or large, is
// made once.
func TestHedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := newLate(t)
		h := store.Hedged(l)
		train(t, h)
		for _, c := range []struct {
			name  string
			n     int64
			takes []time.Duration
			asked int32
			in    time.Duration
		}{
			{"quick", 1, nil, 1, quick},
			{"the first stalls", 1, []time.Duration{time.Hour}, 2, 3 * quick},
			{"the second stalls", -1, []time.Duration{5 * quick, time.Hour}, 2, 5 * quick},
			{"large", 1 << 20, []time.Duration{time.Minute}, 1, time.Minute},
		} {
			l.next(c.takes...)
			begin := time.Now()
			_, _, err := h.Get(t.Context(), "k", 0, c.n)
			if took := time.Since(begin); err != nil || took != c.in || l.asked.Load() != c.asked {
				t.Errorf("%s: %v, %d requests, %v", c.name, took, l.asked.Load(), err)
			}
			l.next()
			train(t, h)
		}
		l.next(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), quick)
		defer cancel()
		if _, _, err := h.Get(ctx, "k", 0, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without time: %v", err)
		}
	})
}

// TestHedgedSwap: of two swaps one is carried out. The other one's answer counts only if nothing better comes.
func TestHedgedSwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			takes []time.Duration
			err   error
		}{
			"the answer comes after all": {[]time.Duration{1100 * time.Millisecond, quick}, nil},
			"the answer is lost":         {[]time.Duration{time.Hour, quick}, store.ErrChanged},
			"quick":                      {nil, nil},
		} {
			l, version := newLate(t, c.takes...)
			begin := time.Now()
			_, err := store.Hedged(l).PutIfMatch(t.Context(), "k", []byte("w"), version)
			if took := time.Since(begin); !errors.Is(err, c.err) || took > 3*time.Second {
				t.Errorf("%s: %v after %v", name, err, took)
			}
			if p, _, err := l.Store.Get(t.Context(), "k", 0, -1); err != nil || string(p) != "w" {
				t.Errorf("%s: it has %q, %v", name, p, err)
			}
		}
	})
}

// TestHedgedBudget: a store that becomes slow as a whole is not asked twice.
func TestHedgedBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _ := newLate(t)
		h := store.Hedged(l)
		train(t, h)
		l.next()
		l.take = func() time.Duration { return time.Duration(l.asked.Load()) * quick } // slower with each request
		const reads = 1000
		for range reads {
			if _, _, err := h.Get(t.Context(), "k", 0, 1); err != nil {
				t.Fatal(err)
			}
		}
		if second := l.asked.Load() - reads; second > reads/20+5 {
			t.Errorf("%d of %d reads were made twice", second, reads)
		}
	})
}

// BenchmarkHedged prints what reads take of a store that stalls one in a hundred, with and without second requests.
func BenchmarkHedged(b *testing.B) {
	const reads = 4000
	p99 := func(s store.Store) time.Duration {
		var all []time.Duration
		for range reads {
			begin := time.Now()
			if _, _, err := s.Get(b.Context(), "k", 0, -1); err != nil {
				b.Fatal(err)
			}
			all = append(all, time.Since(begin))
		}
		slices.Sort(all)
		return all[reads*99/100]
	}
	for b.Loop() {
		l, _ := newLate(b)
		rnd := rand.New(rand.NewPCG(2, 2))
		l.take = func() time.Duration {
			if rnd.IntN(100) < 1 {
				return 200 * time.Millisecond
			}
			return 500 * time.Microsecond
		}
		without, with := p99(l), p99(store.Hedged(l))
		b.ReportMetric(without.Seconds()*1000, "p99-ms-without")
		b.ReportMetric(with.Seconds()*1000, "p99-ms-with")
		b.ReportMetric(with.Seconds()/without.Seconds(), "ratio")
	}
}
