package cache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
)

func TestReadsAnywhere(t *testing.T) {
	im := newImage(t, 1, 200, 9000)
	src := &source{blob: im.blob}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	r := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		off := r.IntN(len(im.bytes))
		wantRange(t, f, im, off, r.IntN(min(50_000, len(im.bytes)-off)+1))
	}
	wantAll(t, f, im)
	before := src.bytes.Load()
	wantAll(t, f, im)
	if src.bytes.Load() != before {
		t.Error("what is present was fetched again")
	}
	if n, err := f.ReadAt(t.Context(), make([]byte, 100), int64(len(im.bytes))-10); n != 10 || err != nil {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if err := f.Verify(t.Context(), im.diffID); err != nil {
		t.Error(err)
	}
}

func TestPrefetchAndReaders(t *testing.T) {
	im := newImage(t, 40, 300, 20_000)
	src := &source{blob: im.blob}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	var all sync.WaitGroup
	all.Go(func() {
		if err := f.PrefetchAll(t.Context()); err != nil {
			t.Error(err)
		}
	})
	for w := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 2))
			for range 100 {
				off := r.IntN(len(im.bytes))
				wantRange(t, f, im, off, r.IntN(min(9000, len(im.bytes)-off)+1))
			}
		})
	}
	all.Wait()
	if !f.Complete() {
		t.Error("prefetched all, yet not complete")
	}
	if n := src.bytes.Load(); n > int64(len(im.blob)) {
		t.Errorf("fetched %d bytes of a blob of %d", n, len(im.blob))
	}
}

func TestStream(t *testing.T) {
	im := newImage(t, 41, 100, 9000)
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, &source{blob: im.blob})
	wantRange(t, f, im, 5000, 50_000)
	var packed bytes.Buffer
	if err := f.Stream(t.Context(), im.diffID, &packed, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(packed.Bytes(), im.blob) || !f.Complete() || !f.Known() {
		t.Errorf("blob equal %v, complete %v, verified %v", bytes.Equal(packed.Bytes(), im.blob), f.Complete(), f.Known())
	}
	g := create(t, c, "b", im, &source{blob: im.blob})
	if err := g.Stream(t.Context(), digest.FromString("another"), io.Discard, nil); !errors.Is(err, cache.ErrDiffID) {
		t.Errorf("another diffID: %v", err)
	}
}

func TestRemovedWhileRead(t *testing.T) {
	im := newImage(t, 42, 200, 9000)
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	for range 20 {
		f := create(t, c, "a", im, &source{blob: im.blob})
		var all sync.WaitGroup
		for w := range 4 {
			all.Go(func() {
				r := rand.New(rand.NewPCG(uint64(w), 3))
				p := make([]byte, 9000)
				for range 30 {
					off := r.IntN(len(im.bytes) - len(p))
					n, err := f.ReadAt(t.Context(), p, int64(off))
					if err == nil && !bytes.Equal(p[:n], im.bytes[off:off+n]) {
						t.Error("wrong bytes")
					}
				}
			})
		}
		if err := c.Remove("a"); err != nil {
			t.Error(err)
		}
		all.Wait()
	}
	if used, _ := c.Usage(); used != 0 {
		t.Errorf("%d bytes are accounted for in an empty cache", used)
	}
}

// TestPrefetchJoinsAnAbandonedFetch: a prefetch that waits for a reader's fetch fetches itself when
// the readers leave, whatever the source says of that.
func TestPrefetchJoinsAnAbandonedFetch(t *testing.T) {
	for name, says := range map[string]func(context.Context) error{"the cause": context.Cause, "the error": context.Context.Err} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { prefetchJoinsAnAbandonedFetch(t, says) })
		})
	}
}

func prefetchJoinsAnAbandonedFetch(t *testing.T, says func(context.Context) error) {
	im := newImage(t, 51, 4, 1000)
	src := &source{blob: im.blob}
	asked := make(chan struct{}, 10)
	src.fault = func(ctx context.Context, _, _ int64, _ int) (io.ReadCloser, error) {
		if src.opens.Load() > 1 {
			return nil, nil
		}
		asked <- struct{}{}
		<-ctx.Done()
		time.Sleep(time.Second) // until the prefetch waits for this fetch, which is still there
		return nil, says(ctx)
	}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := f.ReadAt(ctx, make([]byte, 10), 4096)
		left <- err
	}()
	<-asked
	leave()
	<-left
	if err := f.PrefetchAll(t.Context()); err != nil || !f.Complete() {
		t.Errorf("complete %v, %v", f.Complete(), err)
	}
}

// TestOpenedOnce: whoever asks for a file at the same time gets the same one, by the descriptor that was left.
func TestOpenedOnce(t *testing.T) {
	dir, im := t.TempDir(), newImage(t, 1, 20, 5000)
	c := open(t, dir, cache.Options{})
	create(t, c, "a", im, &source{blob: im.blob})
	closeAndCheck(t, c)
	left, err := os.OpenFile(filepath.Join(dir, "a", "image"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	synctest.Test(t, func(t *testing.T) {
		c := open(t, dir, cache.Options{Held: func(string) (*os.File, error) {
			time.Sleep(time.Second)
			asked++
			return left, nil
		}})
		var all [8]*cache.File
		var opening sync.WaitGroup
		for i := range all {
			opening.Go(func() {
				var err error
				if all[i], err = c.File("a", &source{blob: im.blob}); err != nil {
					t.Error(err)
				}
			})
		}
		opening.Wait()
		for _, f := range all {
			if f == nil || f != all[0] || f.Image() != left {
				t.Errorf("%p beside %p", f, all[0])
			}
		}
		closeAndCheck(t, c)
	})
	if asked != 1 {
		t.Errorf("the descriptor was asked for %d times", asked)
	}
}
