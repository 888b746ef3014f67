package simstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/remote/store"
)

// Faults are probabilities of what befalls one request, and how long it takes.
type Faults struct {
	Lost     float64       // not carried out; the caller gets an error
	Unheard  float64       // carried out; the caller gets an error
	Late     float64       // the caller gets an error; carried out after another Delay or several
	Doubled  float64       // carried out, answered, and carried out once more after another Delay or several
	Delay    time.Duration // of each request, at most
	Outage   error         // what every request gets, if not nil; nothing is carried out
	Missing  bool          // every request is answered as if the store were empty; nothing is carried out, and puts fail
	LateMost time.Duration // how long after its caller was told a request may still arrive
}

// A Store holds objects in memory.
type Store struct {
	mu      sync.Mutex // guards the fields below
	objects map[string]object
	writes  uint64
	rnd     *rand.Rand
	faults  Faults
	counts  map[string]int

	late sync.WaitGroup // requests that have not arrived yet
}

type object struct {
	p       []byte
	version string
}

// New returns an empty Store whose faults follow from rnd.
func New(rnd *rand.Rand) *Store {
	return &Store{objects: map[string]object{}, rnd: rnd, counts: map[string]int{}}
}

// SetFaults says what befalls requests from now on.
func (s *Store) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// Snapshot returns a store that holds what this one holds now, and has no faults. It takes nothing from the randomness that
// this one's faults follow from.
func (s *Store) Snapshot() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := New(rand.New(rand.NewPCG(1, 1)))
	n.objects, n.writes = maps.Clone(s.objects), s.writes
	return n
}

// Wait returns when no late request is on its way any more.
func (s *Store) Wait() { s.late.Wait() }

// Counts returns how many requests of each kind were made: get, head, put, delete, list.
func (s *Store) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := map[string]int{}
	for k, v := range s.counts {
		c[k] = v
	}
	return c
}

// String implements store.Store.
func (s *Store) String() string { return "sim" }

var errNetwork = errors.New("the network failed")

// request carries out one request as the faults have it. do is called with s.mu held, any number of times.
func (s *Store) request(ctx context.Context, kind, key string, changes bool, do func() (store.Object, error)) (store.Object, error) {
	var none store.Object
	s.mu.Lock()
	s.counts[kind]++
	f := s.faults
	delay, dice := s.delayLocked(f), s.rnd.Float64()
	late := s.delayLocked(Faults{Delay: f.LateMost})
	s.mu.Unlock()
	if err := backoff.Sleep(ctx, delay); err != nil {
		return none, err
	}
	fail := fmt.Errorf("%s %s: %w", kind, key, errNetwork)
	if f.Outage != nil {
		return none, fmt.Errorf("%s %s: %w", kind, key, f.Outage)
	}
	if f.Missing {
		return none, missing(kind, key)
	}
	locked := func() (store.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return do()
	}
	afterwards := func() {
		s.late.Go(func() {
			time.Sleep(late)
			_, _ = locked() // nobody waits for it
		})
	}
	switch {
	case dice < f.Lost:
		return none, fail
	case dice < f.Lost+f.Unheard:
		_, _ = locked() // nobody hears of it
		return none, fail
	case changes && dice < f.Lost+f.Unheard+f.Late:
		afterwards()
		return none, fail
	case changes && dice < f.Lost+f.Unheard+f.Late+f.Doubled:
		o, err := locked()
		afterwards()
		return o, err
	}
	return locked()
}

// missing is what an empty store answers.
func missing(kind, key string) error {
	switch kind {
	case "delete", "list":
		return nil
	case "put":
		return fmt.Errorf("put %s: %w", key, store.ErrAway)
	}
	return fmt.Errorf("%s %s: %w", kind, key, store.ErrNoObject)
}

func (s *Store) delayLocked(f Faults) time.Duration {
	if f.Delay <= 0 {
		return 0
	}
	return time.Duration(s.rnd.Int64N(int64(f.Delay)))
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, off, n int64) (p []byte, o store.Object, err error) {
	o, err = s.request(ctx, "get", key, false, func() (o store.Object, err error) {
		held, ok := s.objects[key]
		if !ok {
			return o, fmt.Errorf("get %s: %w", key, store.ErrNoObject)
		}
		size := int64(len(held.p))
		if err := store.CheckRead(key, size, off, n); err != nil {
			return o, err
		}
		end := size
		if n >= 0 {
			end = min(off+n, size)
		}
		p = bytes.Clone(held.p[min(off, end):end])
		o = store.Object{Key: key, Size: size}
		if off == 0 && end == size {
			o.Version = held.version
		}
		return o, nil
	})
	return p, o, err
}

// Head implements store.Store.
func (s *Store) Head(ctx context.Context, key string) (store.Object, error) {
	return s.request(ctx, "head", key, false, func() (o store.Object, err error) {
		held, ok := s.objects[key]
		if !ok {
			return o, fmt.Errorf("head %s: %w", key, store.ErrNoObject)
		}
		return store.Object{Key: key, Size: int64(len(held.p)), Version: held.version}, nil
	})
}

func (s *Store) put(ctx context.Context, key string, p []byte, may func(object, bool) error) (store.Object, error) {
	p = bytes.Clone(p)
	return s.request(ctx, "put", key, true, func() (o store.Object, err error) {
		held, ok := s.objects[key]
		err = may(held, ok)
		if err == nil && !ok && s.nestedLocked(key) {
			err = store.ErrNested
		}
		if err != nil {
			return o, fmt.Errorf("put %s: %w", key, err)
		}
		s.writes++
		v := fmt.Sprint(s.writes)
		if ok && bytes.Equal(held.p, p) {
			v = held.version
		}
		s.objects[key] = object{p, v}
		return store.Object{Key: key, Size: int64(len(p)), Version: v}, nil
	})
}

// nestedLocked reports whether a key continues another object's, or another's continues it. The store refuses such a pair, as
// directories do.
func (s *Store) nestedLocked(key string) bool {
	for at := strings.LastIndexByte(key, '/'); at > 0; at = strings.LastIndexByte(key[:at], '/') {
		if _, ok := s.objects[key[:at]]; ok {
			return true
		}
	}
	for k := range s.objects {
		if len(k) > len(key) && k[len(key)] == '/' && k[:len(key)] == key {
			return true
		}
	}
	return false
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, p []byte) (store.Object, error) {
	return s.put(ctx, key, p, func(object, bool) error { return nil })
}

// PutIfAbsent implements store.Store.
func (s *Store) PutIfAbsent(ctx context.Context, key string, p []byte) (store.Object, error) {
	return s.put(ctx, key, p, func(_ object, ok bool) error {
		if ok {
			return store.ErrExists
		}
		return nil
	})
}

// PutIfMatch implements store.Store.
func (s *Store) PutIfMatch(ctx context.Context, key string, p []byte, version string) (store.Object, error) {
	o, err := s.put(ctx, key, p, func(held object, ok bool) error {
		if !ok || held.version != version {
			return store.ErrChanged
		}
		return nil
	})
	if errors.Is(err, store.ErrAway) { // there is none of that version
		err = fmt.Errorf("put %s: %w", key, store.ErrChanged)
	}
	return o, err
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	_, err := s.request(ctx, "delete", key, true, func() (o store.Object, err error) {
		delete(s.objects, key)
		return o, nil
	})
	return err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, yield func(store.Object) bool) error {
	var all []store.Object
	_, err := s.request(ctx, "list", prefix, false, func() (o store.Object, err error) {
		all = all[:0]
		for k, held := range s.objects {
			if strings.HasPrefix(k, prefix) {
				all = append(all, store.Object{Key: k, Size: int64(len(held.p)), Version: held.version})
			}
		}
		return o, nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b store.Object) int { return strings.Compare(a.Key, b.Key) })
	for _, o := range all {
		if !yield(o) {
			return nil
		}
	}
	return nil
}
