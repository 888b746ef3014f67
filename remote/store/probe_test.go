package store_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/simstore"
)

// The stores below are broken in the ways that servers are.

// ignorant takes every put.
type ignorant struct{ store.Store }

func (s ignorant) PutIfAbsent(ctx context.Context, key string, p []byte) (store.Object, error) {
	return s.Put(ctx, key, p)
}

func (s ignorant) PutIfMatch(ctx context.Context, key string, p []byte, _ string) (store.Object, error) {
	return s.Put(ctx, key, p)
}

// hasty compares before the body has come.
type hasty struct{ store.Store }

func (s hasty) PutIfAbsent(ctx context.Context, key string, p []byte) (store.Object, error) {
	if _, err := s.Head(ctx, key); err == nil {
		return store.Object{}, store.ErrExists
	}
	return s.later(ctx, key, p)
}

func (s hasty) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	if o, err := s.Head(ctx, key); err != nil || o.Version != version {
		return store.Object{}, store.ErrChanged
	}
	return s.later(ctx, key, p)
}

func (s hasty) later(ctx context.Context, key string, p []byte) (store.Object, error) {
	time.Sleep(time.Millisecond)
	return s.Put(ctx, key, p)
}

// many is a server of several processes, each of which excludes its own writers only.
type many struct {
	store.Store
	mu   [3]sync.Mutex
	turn chan int
}

func (s *many) locked(do func() (store.Object, error)) (store.Object, error) {
	i := <-s.turn
	s.turn <- (i + 1) % len(s.mu)
	s.mu[i].Lock()
	defer s.mu[i].Unlock()
	return do()
}

func (s *many) PutIfAbsent(ctx context.Context, key string, p []byte) (store.Object, error) {
	return s.locked(func() (store.Object, error) { return hasty{s.Store}.PutIfAbsent(ctx, key, p) })
}

func (s *many) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	return s.locked(func() (store.Object, error) { return hasty{s.Store}.PutIfMatch(ctx, key, p, version) })
}

// stale shows what was there before for a while.
type stale struct {
	store.Store
	mu  *sync.Mutex
	old map[string][]byte
}

func (s stale) Put(ctx context.Context, key string, p []byte) (store.Object, error) {
	s.mu.Lock()
	if b, _, err := s.Store.Get(ctx, key, 0, -1); err == nil {
		s.old[key] = b
	}
	s.mu.Unlock()
	return s.Store.Put(ctx, key, p)
}

func (s stale) Delete(ctx context.Context, key string) error {
	b, _, err := s.Store.Get(ctx, key, 0, -1)
	if err == nil {
		s.mu.Lock()
		s.old[key] = b
		s.mu.Unlock()
	}
	return s.Store.Delete(ctx, key)
}

func (s stale) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	s.mu.Lock()
	b, ok := s.old[key]
	delete(s.old, key)
	s.mu.Unlock()
	if ok && off == 0 && n < 0 {
		return bytes.Clone(b), store.Object{Key: key, Size: int64(len(b)), Version: "old"}, nil
	}
	return s.Store.Get(ctx, key, off, n)
}

func TestProbe(t *testing.T) {
	right := func() store.Store { return simstore.New(rand.New(rand.NewPCG(1, 2))) }
	turn := make(chan int, 1)
	turn <- 0
	for name, c := range map[string]struct {
		s    store.Store
		safe bool
	}{
		"right":                        {right(), true},
		"conditions ignored":           {ignorant{right()}, false},
		"compared before the body":     {hasty{right()}, false},
		"excluded within processes":    {&many{Store: right(), turn: turn}, false},
		"what was deleted is readable": {stale{right(), new(sync.Mutex), map[string][]byte{}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := store.Probe(t.Context(), c.s, "probe/", func(string) {})
			switch {
			case c.safe && err != nil:
				t.Errorf("refused: %v", err)
			case !c.safe && !errors.Is(err, store.ErrUnsafe):
				t.Errorf("not refused: %v", err)
			}
		})
	}
}

// TestProbeOnBadNetwork: a store that is right is not called unsafe because requests get lost: an error without a verdict is
// one.
func TestProbeOnBadNetwork(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			s := simstore.New(rand.New(rand.NewPCG(seed, 3)))
			s.SetFaults(simstore.Faults{Lost: 0.02, Delay: 20 * time.Millisecond})
			if err := store.Probe(t.Context(), s, "probe/", func(string) {}); errors.Is(err, store.ErrUnsafe) {
				t.Errorf("seed %d: %v", seed, err)
			}
			s.Wait()
		})
	}
}
