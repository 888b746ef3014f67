package cache_test

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache"
)

// failOnce fails the first sync of an image file once armed, as a disk does that has lost what was written: lose says which
// bytes of the file.
func failOnce(o *cache.Options, lose func(fd int)) (armed, failed *atomic.Bool) {
	armed, failed = new(atomic.Bool), new(atomic.Bool)
	o.FailSync(func(fd int) error {
		// Of the directories' and tables' files none is synced by this.
		if armed.Load() && !failed.Load() && strings.HasSuffix(nameOf(fd), "/image") {
			lose(fd)
			failed.Store(true)
			return unix.EIO
		}
		return unix.Fdatasync(fd)
	})
	return armed, failed
}

func nameOf(fd int) string {
	name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) // "" if it cannot be told
	return name
}

// TestSyncFails: what a failed sync may have lost is not believed. It is read right afterwards, from the registry if the
// disk has it no longer, now and after a restart.
func TestSyncFails(t *testing.T) {
	zero := func(from, n int64) func(int) {
		return func(fd int) {
			if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, n); err != nil {
				t.Error(err)
			}
		}
	}
	im := newImage(t, 3, 200, 20_000)
	for name, c := range map[string]struct {
		lose  func(int)
		fetch bool // again
	}{
		"nothing is lost": {func(int) {}, false},
		"some is lost":    {zero(im.spec.ImageSize-300_000, 300_000), true},
		"more is lost":    {zero(im.spec.ImageSize-800_000, 800_000), true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var o cache.Options
			armed, failed := failOnce(&o, c.lose)
			c1 := open(t, dir, o)
			src := &source{blob: im.blob}
			f, err := c1.Create("a", im.spec, src)
			if err != nil {
				t.Fatal(err)
			}
			f.Pin()                            // the kernel may read it itself
			if err := f.Commit(); err != nil { // of the metadata: all data comes after that
				t.Fatal(err)
			}
			armed.Store(true)
			wantAll(t, f, im)
			for !failed.Load() {
				time.Sleep(time.Millisecond)
			}
			if err := f.Commit(); err != nil { // it waits for the one that failed
				t.Fatal(err)
			}
			before := src.opens.Load()
			wantAll(t, f, im)
			if again := src.opens.Load() > before; again && !c.fetch {
				t.Error("it was fetched again though nothing was lost")
			}
			if err := f.PrefetchAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, im.spec.ImageSize-im.spec.MetaSize)
			if _, err := f.Image().ReadAt(p, im.spec.MetaSize); err != nil {
				t.Fatal(err)
			}
			for _, e := range im.spec.Extents { // as the kernel reads it
				if got := p[e.Off-im.spec.MetaSize:][:e.Len]; string(got) != string(im.bytes[e.Off:e.Off+int64(e.Len)]) {
					t.Fatalf("the file has other bytes at %d", e.Off)
				}
			}
			f.Unpin()
			closeAndCheck(t, c1)
			c2 := open(t, dir, cache.Options{})
			defer closeAndCheck(t, c2)
			if f, err = c2.File("a", &source{blob: im.blob}); err != nil {
				t.Fatal(err)
			}
			wantAll(t, f, im)
		})
	}
}

// TestSyncFailsAtFirst: an image whose metadata a failed sync has lost is not believed by the next process.
func TestSyncFailsAtFirst(t *testing.T) {
	im := newImage(t, 4, 20, 20_000)
	dir := t.TempDir()
	var o cache.Options
	armed, failed := failOnce(&o, func(fd int) {
		if _, err := unix.Pwrite(fd, make([]byte, im.spec.MetaSize), 0); err != nil {
			t.Error(err)
		}
	})
	armed.Store(true)
	c := open(t, dir, o)
	if _, err := c.Create("a", im.spec, &source{blob: im.blob}); err != nil {
		t.Fatal(err)
	}
	for !failed.Load() {
		time.Sleep(time.Millisecond)
	}
	if err := c.Close(); err != nil { // it waits for the commit that failed
		t.Error(err)
	}
	c = open(t, dir, cache.Options{})
	defer closeAndCheck(t, c)
	if _, err := c.File("a", &source{blob: im.blob}); err == nil {
		t.Error("an image without its metadata was opened")
	}
	if err := c.Remove("a"); err != nil { // as who finds it so makes it anew
		t.Error(err)
	}
}
