package cache_test

import (
	"sync"
	"testing"

	"github.com/remora-storage/remora/cache"
)

// TestSameDigestIsCopied: an extent that another layer has is not fetched.
func TestSameDigestIsCopied(t *testing.T) {
	im := newImage(t, 9, 50, 5000)
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	wantAll(t, create(t, c, "old", im, &source{blob: im.blob}), im)
	src := &source{blob: im.blob}
	f := create(t, c, "new", im, src)
	wantAll(t, f, im)
	if n := src.bytes.Load(); n != 0 {
		t.Errorf("fetched %d bytes that another layer had", n)
	}
}

// TestRebuiltLayer: of a layer that is like another but for a few extents, only those are fetched to
// make it complete and to check its diffID, with what lies around them. One whose headers differ
// where nobody can see it is found out by its diffID, and fetched.
func TestRebuiltLayer(t *testing.T) {
	old := newImage(t, 4, 60, 5000)
	same := newImage(t, 4, 60, 5000)
	headers := newImageWith(t, 4, 60, 5000, "tail and the NEXT header")
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	wantAll(t, create(t, c, "old", old, &source{blob: old.blob}), old)
	for name, one := range map[string]struct {
		im  *image
		all bool
	}{"the same": {same, false}, "other headers": {headers, true}} {
		t.Run(name, func(t *testing.T) {
			src := &source{blob: one.im.blob}
			f := create(t, c, name, one.im, src)
			if err := f.PrefetchAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			var both sync.WaitGroup
			for range 2 { // at once: one must not be misled by what the other drops
				both.Go(func() {
					if err := f.Verify(t.Context(), one.im.diffID); err != nil {
						t.Error(err)
					}
				})
			}
			both.Wait()
			if n := src.bytes.Load(); (n > int64(len(one.im.blob))/4) != one.all {
				t.Errorf("fetched %d of %d bytes", n, len(one.im.blob))
			}
			wantAll(t, f, one.im)
		})
	}
}

// TestTwinIsOfTheEarlierBuild: another layer begins with the same files, under other headers, and comes
// first by name; a rebuilt layer resembles its earlier build all the same.
func TestTwinIsOfTheEarlierBuild(t *testing.T) {
	other := newImageWith(t, 4, 10, 5000, "tail and the header of another layer")
	old, rebuilt := newImage(t, 4, 60, 5000), newImage(t, 4, 60, 5000)
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	wantAll(t, create(t, c, "a", other, &source{blob: other.blob}), other)
	wantAll(t, create(t, c, "b", old, &source{blob: old.blob}), old)
	src := &source{blob: rebuilt.blob}
	f := create(t, c, "c", rebuilt, src)
	if err := f.PrefetchAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(t.Context(), rebuilt.diffID); err != nil {
		t.Fatal(err)
	}
	if n := src.bytes.Load(); n > int64(len(rebuilt.blob))/4 {
		t.Errorf("fetched %d of %d bytes", n, len(rebuilt.blob))
	}
}
