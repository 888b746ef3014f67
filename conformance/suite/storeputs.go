package suite

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/remora-storage/remora/remote/store"
)

// storeNested puts objects whose keys continue each other: both can be read then, or the second was refused and the first
// is as it was.
func storeNested(t *testing.T, s subject) {
	ctx := t.Context()
	puts := map[string]func(key string, p []byte) error{
		"put":           func(key string, p []byte) error { _, err := s.Put(ctx, key, p); return err },
		"put if absent": func(key string, p []byte) error { _, err := s.PutIfAbsent(ctx, key, p); return err },
	}
	for name, put := range puts {
		for _, pair := range [][2]string{{"a", "a/b"}, {"c/d/e", "c/d"}, {"x/y/z", "x"}, {"p", "p/q/r"}} {
			first, second := pair[0], pair[1]
			if err := put(first, []byte(first)); err != nil {
				t.Fatal(err)
			}
			mustBeGone(t, s, second)
			if _, err := s.PutIfMatch(ctx, second, []byte("x"), "none"); !errors.Is(err, store.ErrChanged) && !errors.Is(err, store.ErrNested) {
				t.Errorf("%q beside %q: put if unchanged without an object: %v", second, first, err)
			}
			if err := s.Delete(ctx, second); err != nil {
				t.Errorf("%q beside %q: delete what is not there: %v", second, first, err)
			}
			there := []string{first, second}
			switch err := put(second, []byte(second)); {
			case errors.Is(err, store.ErrNested):
				there = there[:1]
				mustBeGone(t, s, second)
			case err != nil:
				t.Errorf("%s %q beside %q: %v, want success or ErrNested", name, second, first, err)
			}
			if len(there) == 1 { // one that keeps both may leave one out of its lists
				mustList(t, s, first[:1], there)
			}
			for _, k := range there {
				if got, _, err := s.Get(ctx, k, 0, -1); err != nil || string(got) != k {
					t.Errorf("%q of %q: %q, %v", k, pair, got, err)
				}
			}
			if err := s.Delete(ctx, first); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Put(ctx, second, []byte("alone")); err != nil {
				t.Errorf("put %q where %q was: %v", second, first, err)
			}
			if err := s.Delete(ctx, second); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func mustBeGone(t *testing.T, s subject, key string) {
	t.Helper()
	if got, _, err := s.Get(t.Context(), key, 0, -1); !errors.Is(err, store.ErrNoObject) {
		t.Errorf("get %q: %q, %v; it is not there", key, got, err)
	}
	if _, err := s.Head(t.Context(), key); !errors.Is(err, store.ErrNoObject) {
		t.Errorf("head %q: %v; it is not there", key, err)
	}
}

func mustList(t *testing.T, s subject, prefix string, want []string) {
	t.Helper()
	var got []string
	err := s.List(t.Context(), prefix, func(o store.Object) bool {
		got = append(got, o.Key)
		return true
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("list %q: %q, %v; want %q", prefix, got, err, want)
	}
}

// storeEnded calls everything with a context that has ended: it fails, and nothing changes.
func storeEnded(t *testing.T, s subject) {
	o, err := s.Put(t.Context(), "k", []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	o = s.versioned(t, o)
	ctx, end := context.WithCancel(t.Context())
	end()
	for name, do := range map[string]func() error{
		"get":           func() error { _, _, err := s.Get(ctx, "k", 0, -1); return err },
		"head":          func() error { _, err := s.Head(ctx, "k"); return err },
		"put":           func() error { _, err := s.Put(ctx, "k", []byte("new")); return err },
		"put if absent": func() error { _, err := s.PutIfAbsent(ctx, "none", []byte("new")); return err },
		"put if match":  func() error { _, err := s.PutIfMatch(ctx, "k", []byte("new"), o.Version); return err },
		"delete":        func() error { return s.Delete(ctx, "k") },
		"list":          func() error { return s.List(ctx, "", func(store.Object) bool { return true }) },
	} {
		if err := do(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a context that has ended: %v", name, err)
		}
	}
	mustList(t, s, "", []string{"k"})
	if got, _, err := s.Get(t.Context(), "k", 0, -1); err != nil || string(got) != "old" {
		t.Errorf("after all that: %q, %v", got, err)
	}
}

// soon is far beyond what a store or a device takes to notice that its caller has gone, on a machine that does a lot besides.
const soon = 30 * time.Second

// storeCancelled ends puts while they run: each returns soon, and has stored all of its object or nothing; a later put works.
func storeCancelled(t *testing.T, s subject) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	body := bytes.Repeat([]byte("cancelled"), 60_000)
	began := time.Now()
	if _, err := s.Put(t.Context(), "timed", body); err != nil {
		t.Fatal(err)
	}
	usual := time.Since(began)
	ended := 0
	for range 16 {
		ctx, end := context.WithCancel(t.Context())
		timer := time.AfterFunc(time.Duration(rnd.Int64N(int64(usual)+1)), end)
		began = time.Now()
		_, err := s.Put(ctx, "k", body)
		timer.Stop()
		end()
		if took := time.Since(began); took > soon {
			t.Errorf("a put whose context has ended took %v", took)
		}
		got, _, gerr := s.Get(t.Context(), "k", 0, -1)
		switch {
		case err != nil:
			ended++
			if !errors.Is(gerr, store.ErrNoObject) && (gerr != nil || !bytes.Equal(got, body)) {
				t.Errorf("after a put that failed (%v): %d bytes of %d, %v", err, len(got), len(body), gerr)
			}
		case gerr != nil || !bytes.Equal(got, body):
			t.Errorf("after a put: %d bytes of %d, %v", len(got), len(body), gerr)
		}
		later := []byte("later")
		if _, err := s.Put(t.Context(), "k", later); err != nil {
			t.Fatalf("a later put: %v", err)
		}
		// The one that failed may still arrive.
		if got, _, err := s.Get(t.Context(), "k", 0, -1); err != nil || !bytes.Equal(got, later) && !bytes.Equal(got, body) {
			t.Errorf("after a later put: %d bytes, %v", len(got), err)
		}
		if err := s.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of 16 puts failed", ended)
}
