package cache_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/remora-storage/remora/cache"
)

// TestBudget: the limit is never exceeded, under concurrent readers of more than fits, and
// every byte is right all the same.
func TestBudget(t *testing.T) {
	const limit = 600_000
	c := open(t, t.TempDir(), cache.Options{Limit: limit})
	defer closeAndCheck(t, c)
	var images []*image
	var files []*cache.File
	for i := range 3 {
		im := newImage(t, uint64(20+i), 100, 8000)
		images = append(images, im)
		files = append(files, create(t, c, string(rune('a'+i)), im, &source{blob: im.blob}))
	}
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 200 {
				k := r.IntN(3)
				off := r.IntN(len(images[k].bytes))
				wantRange(t, files[k], images[k], off, r.IntN(min(20_000, len(images[k].bytes)-off)+1))
				if used, _ := c.Usage(); used > limit {
					t.Errorf("%d bytes used of %d", used, limit)
					return
				}
			}
		})
	}
	all.Wait()
	for i, f := range files {
		if err := c.Commit(); err != nil {
			t.Fatal(err)
		}
		wantAll(t, f, images[i])
		if err := c.Remove(string(rune('a' + i))); err != nil {
			t.Fatal(err)
		}
	}
	if used, _ := c.Usage(); used != 0 {
		t.Errorf("%d bytes are accounted for in an empty cache", used)
	}
}

// TestPinned: a pinned file keeps its extents however much others need.
func TestPinned(t *testing.T) {
	a, b := newImage(t, 30, 20, 8000), newImage(t, 31, 100, 8000)
	c := open(t, t.TempDir(), cache.Options{Limit: 300_000})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", a, &source{blob: a.blob})
	wantAll(t, f, a)
	if !f.PinIfComplete() {
		t.Fatal("not complete")
	}
	g := create(t, c, "b", b, &source{blob: b.blob})
	wantAll(t, g, b)
	if !f.Complete() {
		t.Error("extents of a pinned file were evicted")
	}
	got, err := os.ReadFile(f.Path()) // as the kernel would
	if err != nil || !bytes.Equal(got, a.bytes) {
		t.Errorf("image file is not the image: %v", err)
	}
	f.Unpin()
}
