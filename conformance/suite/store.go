package suite

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/remora-storage/remora/remote/store"
)

// Store tests a store.Store. open returns an empty one.
func Store(t *testing.T, open func(t *testing.T) store.Store) {
	run(t, func(t *testing.T) subject { return subject{Store: open(t)} })
}

// Bulk tests what a store.Bulk promises of its bulk. open returns an empty one, for which all keys are bulk.
func Bulk(t *testing.T, open func(t *testing.T) store.Bulk) {
	run(t, func(t *testing.T) subject {
		s := open(t)
		for _, k := range []string{"k", "a/b", "count", "a/b/c/d/e/f"} {
			if !s.IsBulk(k) {
				t.Fatalf("%q is not bulk", k)
			}
		}
		return subject{s, true}
	})
}

func run(t *testing.T, open func(t *testing.T) subject) {
	for name, test := range map[string]func(*testing.T, subject){
		"bytes": storeBytes, "conditions": storeConditions, "races": storeRaces, "list": storeList, "keys": storeKeys,
		"nested keys": storeNested, "ended context": storeEnded, "cancelled puts": storeCancelled,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// A subject is a store under test.
type subject struct {
	store.Store
	bulk bool // its puts may return no version
}

// versioned completes what a put has returned: a version that bulk may leave out is asked for.
func (s subject) versioned(t *testing.T, o store.Object) store.Object {
	t.Helper()
	if o.Version != "" || !s.bulk {
		return o
	}
	o, err := s.Head(t.Context(), o.Key)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func storeBytes(t *testing.T, s subject) {
	ctx := t.Context()
	want := make([]byte, 1<<20+17)
	for i := range want {
		want[i] = byte(i * i >> 7)
	}
	o, err := s.Put(ctx, "a/b", want)
	if err != nil {
		t.Fatal(err)
	}
	if o = s.versioned(t, o); o.Size != int64(len(want)) || o.Version == "" {
		t.Fatalf("put: %+v", o)
	}
	for _, r := range []struct{ off, n, from, to int64 }{
		{0, -1, 0, int64(len(want))}, {0, 10, 0, 10}, {5, 100, 5, 105}, {int64(len(want)) - 3, 10, int64(len(want)) - 3, int64(len(want))},
		{1 << 20, -1, 1 << 20, int64(len(want))}, {7, 0, 7, 7}, {int64(len(want)), 10, 0, 0}, {int64(len(want)) + 5, 1, 0, 0},
	} {
		got, g, err := s.Get(ctx, "a/b", r.off, r.n)
		if err != nil || !bytes.Equal(got, want[r.from:r.to]) || g.Size != o.Size {
			t.Errorf("get %d+%d: %d bytes of %d, %v", r.off, r.n, len(got), g.Size, err)
		}
		if whole := int64(len(got)) == o.Size; whole != (g.Version == o.Version) {
			t.Errorf("get %d+%d: version %q, the object's is %q", r.off, r.n, g.Version, o.Version)
		}
	}
	if h, err := s.Head(ctx, "a/b"); err != nil || h.Size != o.Size || h.Version != o.Version {
		t.Errorf("head: %+v, %v; put said %+v", h, err, o)
	}
	if _, err := s.Put(ctx, "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if got, _, err := s.Get(ctx, "a/b", 0, -1); err != nil || string(got) != "x" {
		t.Errorf("after a second put: %d bytes, %v", len(got), err)
	}
	for range 2 {
		if err := s.Delete(ctx, "a/b"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, _, err := s.Get(ctx, "a/b", 0, -1); !errors.Is(err, store.ErrNoObject) {
		t.Errorf("get after delete: %v", err)
	}
	if _, err := s.Head(ctx, "a/b"); !errors.Is(err, store.ErrNoObject) {
		t.Errorf("head after delete: %v", err)
	}
}

func storeConditions(t *testing.T, s subject) {
	ctx := t.Context()
	first, err := s.PutIfAbsent(ctx, "k", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	first = s.versioned(t, first)
	if _, err := s.PutIfAbsent(ctx, "k", []byte("2")); !errors.Is(err, store.ErrExists) {
		t.Errorf("put if absent over an object: %v", err)
	}
	second, err := s.PutIfMatch(ctx, "k", []byte("2"), first.Version)
	if err != nil {
		t.Fatal(err)
	}
	second = s.versioned(t, second)
	if _, err := s.PutIfMatch(ctx, "k", []byte("3"), first.Version); !errors.Is(err, store.ErrChanged) {
		t.Errorf("put over an old version: %v", err)
	}
	if _, err := s.PutIfMatch(ctx, "none", []byte("3"), first.Version); !errors.Is(err, store.ErrChanged) {
		t.Errorf("put if unchanged without an object: %v", err)
	}
	if got, o, err := s.Get(ctx, "k", 0, -1); err != nil || string(got) != "2" || o.Version != second.Version {
		t.Errorf("%q of version %q, %v", got, o.Version, err)
	}
	if err := s.Delete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutIfMatch(ctx, "k", []byte("4"), second.Version); !errors.Is(err, store.ErrChanged) {
		t.Errorf("put if unchanged over a deleted object: %v", err)
	}
	if _, err := s.PutIfAbsent(ctx, "k", []byte("5")); err != nil {
		t.Errorf("put if absent over a deleted object: %v", err)
	}
}

// storeRaces counts up one object by many writers: each increment that was acknowledged must be there.
func storeRaces(t *testing.T, s subject) {
	ctx := t.Context()
	if _, err := s.PutIfAbsent(ctx, "count", []byte("0")); err != nil {
		t.Fatal(err)
	}
	const writers, each = 8, 12
	var started sync.WaitGroup
	for range writers {
		started.Go(func() {
			for done := 0; done < each; {
				p, o, err := s.Get(ctx, "count", 0, -1)
				if err != nil {
					t.Error(err)
					return
				}
				var n int
				if _, err := fmt.Sscan(string(p), &n); err != nil {
					t.Errorf("%q: %v", p, err)
					return
				}
				_, err = s.PutIfMatch(ctx, "count", fmt.Append(nil, n+1), o.Version)
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrChanged):
					t.Error(err)
					return
				}
			}
		})
	}
	started.Wait()
	if p, _, err := s.Get(ctx, "count", 0, -1); err != nil || string(p) != fmt.Sprint(writers*each) {
		t.Errorf("%s increments of %d are there (%v)", p, writers*each, err)
	}
	if s.bulk {
		return // the probe goes by the versions that puts return
	}
	if err := store.Probe(ctx, s, "probe/", func(string) {}); err != nil {
		t.Errorf("probe: %v", err)
	}
	left := 0
	if err := s.List(ctx, "probe/", func(store.Object) bool { left++; return true }); err != nil || left > 0 {
		t.Errorf("the probe has left %d objects (%v)", left, err)
	}
}

func storeList(t *testing.T, s subject) {
	ctx := t.Context()
	keys := []string{"a.b", "a/b", "a/c/d", "a/c/e", "a0", "b/1", "b/2"}
	for _, k := range keys {
		if _, err := s.Put(ctx, k, []byte(k)); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string][]string{
		"": keys, "a": {"a.b", "a/b", "a/c/d", "a/c/e", "a0"}, "a/": {"a/b", "a/c/d", "a/c/e"}, "a/c": {"a/c/d", "a/c/e"},
		"b/1": {"b/1"}, "c": nil, "a/c/d/": nil,
	} {
		var got []string
		if err := s.List(ctx, prefix, func(o store.Object) bool {
			got = append(got, o.Key)
			if o.Size != int64(len(o.Key)) {
				t.Errorf("%s has %d bytes", o.Key, o.Size)
			}
			return true
		}); err != nil {
			t.Errorf("list %q: %v", prefix, err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("list %q: %q, want %q", prefix, got, want)
		}
	}
	n := 0
	if err := s.List(ctx, "", func(store.Object) bool { n++; return n < 3 }); err != nil || n != 3 {
		t.Errorf("a list that was left after 3 gave %d, %v", n, err)
	}
}

func storeKeys(t *testing.T, s subject) {
	long := string(bytes.Repeat([]byte("k"), 200))
	for _, k := range []string{"x", "a/b/c/d/e/f", long, "A-b_c.9"} {
		if _, err := s.Put(t.Context(), k, []byte("v")); err != nil {
			t.Errorf("key %q: %v", k, err)
		}
		if got, _, err := s.Get(t.Context(), k, 0, -1); err != nil || string(got) != "v" {
			t.Errorf("key %q: %q, %v", k, got, err)
		}
	}
}
