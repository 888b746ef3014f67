package cache_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remora-storage/remora/cache"
)

// link is what a source says of the way to it.
type link struct {
	*source
	latency time.Duration
	rate    int64
}

func (l link) Link() (time.Duration, int64) { return l.latency, l.rate }

// log notes the ranges that a source is asked for.
type rangeLog struct {
	mu  sync.Mutex
	all [][2]int64
}

func (l *rangeLog) note(_ context.Context, off, n int64, _ int) (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, [2]int64{off, n})
	return nil, nil
}

func list(pieces ...cache.Piece) func(int64) []cache.Piece {
	return func(int64) []cache.Piece {
		some := pieces
		pieces = nil
		return some
	}
}

// TestPrefetchMergesRequests: neighbours of two files become one request each, a gap is read where that
// costs less than a request, and nothing is asked for twice.
func TestPrefetchMergesRequests(t *testing.T) {
	for name, c := range map[string]struct {
		latency time.Duration
		rate    int64
		most    int
	}{
		"a long fat link reads gaps":     {100 * time.Millisecond, 1 << 30, 2},
		"a short link asks once more":    {100 * time.Microsecond, 1 << 20, 4},
		"an unknown link is one between": {0, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newImage(t, 1, 60, 3000), newImage(t, 2, 60, 3000)
			ca := open(t, t.TempDir(), cache.Options{})
			var logA, logB rangeLog
			srcA, srcB := &source{blob: a.blob, fault: logA.note}, &source{blob: b.blob, fault: logB.note}
			fa := create(t, ca, "a", a, link{srcA, c.latency, c.rate})
			fb := create(t, ca, "b", b, link{srcB, c.latency, c.rate})
			var pieces []cache.Piece
			for _, u := range []uint32{1, 2, 3, 30, 31, 2} { // 30 lies some 30 KB behind 3
				pieces = append(pieces, cache.Piece{File: fa, Unit: u}, cache.Piece{File: fb, Unit: u})
			}
			if err := ca.Prefetch(t.Context(), list(pieces...)); err != nil {
				t.Fatal(err)
			}
			requests := len(logA.all) + len(logB.all)
			if requests != c.most {
				t.Errorf("%d requests, want %d: %v %v", requests, c.most, logA.all, logB.all)
			}
			for _, f := range []*cache.File{fa, fb} {
				for _, u := range []uint32{1, 2, 3, 30, 31} {
					if f.Wants(u) {
						t.Errorf("unit %d of %s is missing", u, f.ID())
					}
				}
				if !f.Wants(10) {
					t.Error("what lies in a gap was stored")
				}
			}
			if err := ca.Prefetch(t.Context(), list(pieces...)); err != nil || len(logA.all)+len(logB.all) != requests {
				t.Errorf("asked again: %v, %d requests", err, len(logA.all)+len(logB.all))
			}
			closeAndCheck(t, ca)
		})
	}
}

// TestReaderGoesFirst: a reader's request goes out at once while a hundred are to be made for
// prefetching, and until it is answered no more than one of those is begun at a time.
func TestReaderGoesFirst(t *testing.T) { synctest.Test(t, readerGoesFirst) }

func readerGoesFirst(t *testing.T) {
	im := newImageWith(t, 3, 500, 40000, "x")
	var before, besides, most atomic.Int64
	var reading atomic.Bool
	last := im.spec.Units[500]
	src := &source{blob: im.blob}
	src.fault = func(_ context.Context, off, _ int64, _ int) (io.ReadCloser, error) {
		if off == last.Off {
			time.Sleep(100 * time.Millisecond) // what was begun before has been answered by then
			reading.Store(true)
			time.Sleep(150 * time.Millisecond)
			reading.Store(false)
			return nil, nil
		}
		if !reading.Load() {
			before.Add(1)
			time.Sleep(10 * time.Millisecond)
			return nil, nil
		}
		n := besides.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(10 * time.Millisecond)
		besides.Add(-1)
		return nil, nil
	}
	c := open(t, t.TempDir(), cache.Options{})
	f := create(t, c, "one", im, link{src, 100 * time.Microsecond, 1 << 20})
	var units []uint32 // far enough apart for a request each
	for u := uint32(1); u < 500; u += 5 {
		units = append(units, u)
	}
	done := make(chan error, 1)
	go func() { done <- f.Prefetch(t.Context(), units) }()
	for before.Load() < 10 {
		time.Sleep(time.Millisecond)
	}
	e := im.spec.Extents[499]
	p := make([]byte, e.Len)
	if _, err := f.ReadAt(t.Context(), p, e.Off); err != nil {
		t.Fatal(err)
	}
	if n := most.Load(); n > 1 {
		t.Errorf("%d requests at once were begun for prefetching while a reader waited, want no more than 1", n)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	closeAndCheck(t, c)
}

// TestPrefetchFails: what cannot be prefetched fails nobody, and readers get it when it comes.
func TestPrefetchFails(t *testing.T) {
	im := newImage(t, 4, 50, 3000)
	var broken atomic.Bool
	broken.Store(true)
	src := &source{blob: im.blob}
	src.fault = func(context.Context, int64, int64, int) (io.ReadCloser, error) {
		if broken.Load() {
			return nil, errors.New("the registry is ill")
		}
		return nil, nil
	}
	c := open(t, t.TempDir(), cache.Options{})
	f := create(t, c, "one", im, src)
	if err := f.Prefetch(t.Context(), []uint32{1, 2, 3}); err == nil {
		t.Error("prefetching from a broken source succeeded")
	}
	broken.Store(false)
	wantAll(t, f, im)
	closeAndCheck(t, c)
}

// TestPrefetchEndsWithItsFile: removing an image ends what is fetched for it.
func TestPrefetchEndsWithItsFile(t *testing.T) {
	im := newImage(t, 5, 50, 3000)
	started := make(chan struct{}, 100)
	src := &source{blob: im.blob}
	src.fault = func(ctx context.Context, _, _ int64, _ int) (io.ReadCloser, error) {
		started <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c := open(t, t.TempDir(), cache.Options{})
	f := create(t, c, "one", im, src)
	done := make(chan error, 1)
	go func() { done <- f.PrefetchAll(t.Context()) }()
	<-started
	if err := c.Remove("one"); err != nil {
		t.Fatal(err)
	}
	<-done // its error says only that the image is gone
	if n := len(started); n > 0 {
		t.Errorf("%d requests after the image was removed", n)
	}
	closeAndCheck(t, c)
}

// TestAccount: what was fetched ahead, what of it was used, and what readers waited for.
func TestAccount(t *testing.T) {
	im := newImage(t, 6, 200, 20000) // large enough that a reader's request does not bring all
	c := open(t, t.TempDir(), cache.Options{})
	f := create(t, c, "one", im, &source{blob: im.blob})
	recording := f.RecordUses()
	if err := f.Prefetch(t.Context(), []uint32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	length := func(units ...int) (n int64) {
		for _, u := range units {
			n += im.spec.Units[u].Len
		}
		return n
	}
	e := im.spec.Extents[1] // unit 2
	wantRange(t, f, im, int(e.Off), int(e.Len))
	s := f.Stats()
	if s.Prefetched != length(1, 2, 3) || s.PrefetchUsed != length(2) || s.Demanded != 0 || s.Waits != 0 || s.Read != length(2) {
		t.Errorf("after a read of what was there: %+v", s)
	}
	e = im.spec.Extents[150]
	wantRange(t, f, im, int(e.Off), int(e.Len))
	wantRange(t, f, im, int(e.Off), int(e.Len))
	s = f.Stats()
	if s.Waits != 1 || s.Waited <= 0 || s.Demanded < length(151) || s.Prefetched != length(1, 2, 3) || s.Read != length(2, 151) {
		t.Errorf("after a read of what was missing: %+v", s)
	}
	var used []uint32
	for _, u := range recording.End() {
		used = append(used, u.Extent.Unit)
	}
	if !slices.Equal(used, []uint32{2, 151}) {
		t.Errorf("recorded units %v, want 2 and 151", used)
	}
	closeAndCheck(t, c)
}

// TestPeek reads what is here only, and is no reader.
func TestPeek(t *testing.T) {
	im := newImage(t, 7, 20, 3000)
	c := open(t, t.TempDir(), cache.Options{})
	f := create(t, c, "one", im, &source{blob: im.blob})
	e := im.spec.Extents[3]
	p := make([]byte, e.Len)
	if _, err := f.Peek(p, e.Off); !errors.Is(err, cache.ErrMissing) {
		t.Errorf("peek at what is missing: %v", err)
	}
	if err := f.PrefetchAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Peek(p, e.Off); err != nil || string(p) != string(im.bytes[e.Off:e.Off+int64(e.Len)]) {
		t.Errorf("peek: %v", err)
	}
	if s := f.Stats(); s.Read != 0 {
		t.Errorf("a peek counts as %d bytes read", s.Read)
	}
	closeAndCheck(t, c)
}
