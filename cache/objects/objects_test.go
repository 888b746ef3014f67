package cache_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/remora-storage/remora/cache"
)

// TestObjects: what was written comes back, over a restart too; what was not is absent or zeros.
func TestObjects(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, cache.Options{})
	o := c.Objects()
	want := make([]byte, 3<<20+123)
	for i := range want {
		want[i] = byte(i>>3 | 1)
	}
	o.WriteAt("v/1/seg/a", want, 0)
	o.WriteAt("v/1/seg/b", want[:10000], 8192+5) // whole pages of it alone
	read := func(c *cache.Cache) {
		t.Helper()
		for _, r := range []struct{ off, n int }{{0, 10}, {4095, 2}, {1<<20 - 7, 1<<20 + 9}, {5, 4000}, {3<<20 - 4096, 4096}} {
			got := make([]byte, r.n)
			if !c.Objects().ReadAt("v/1/seg/a", got, int64(r.off)) || !bytes.Equal(got, want[r.off:r.off+r.n]) {
				t.Errorf("%d bytes at %d are not there", r.n, r.off)
			}
		}
		got := make([]byte, 4096)
		if !c.Objects().ReadAt("v/1/seg/b", got, 12288) || !bytes.Equal(got, want[4096-5:8192-5]) {
			t.Error("a page is not there")
		}
		if c.Objects().ReadAt("v/1/seg/a", make([]byte, 10), 10<<20) || c.Objects().ReadAt("none", make([]byte, 10), 0) {
			t.Error("what is not there was read")
		}
	}
	read(c)
	used, _ := c.Usage()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir, cache.Options{})
	defer c.Close()
	read(c)
	if again, _ := c.Usage(); again != used {
		t.Errorf("%d bytes used before, %d after", used, again)
	}
	c.Objects().Drop("v/1/seg/a")
	c.Objects().Drop("v/1/seg/a")
	c.Objects().Drop("v/1/seg/b")
	if used, _ := c.Usage(); used != 0 {
		t.Errorf("%d bytes used by nothing", used)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "objects")); err != nil || len(left) > 0 {
		t.Errorf("%d files are left (%v)", len(left), err)
	}
}

// TestObjectsBudget: the budget holds while many write, read and drop, and the count of bytes is that of the disk.
func TestObjectsBudget(t *testing.T) {
	const limit = 8 << 20
	dir := t.TempDir()
	c := open(t, dir, cache.Options{Limit: limit})
	defer c.Close()
	o := c.Objects()
	var started sync.WaitGroup
	for w := range 6 {
		started.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			p := make([]byte, 300<<10)
			for range 400 {
				key := fmt.Sprintf("k/%d", r.IntN(60))
				off := int64(r.IntN(64)) << 12
				p := p[:r.IntN(len(p))]
				switch r.IntN(4) {
				case 0:
					o.ReadAt(key, p, off)
				case 1:
					o.Drop(key)
				default:
					o.WriteAt(key, p, off)
				}
				if used, _ := c.Usage(); used > limit {
					t.Errorf("%d bytes of %d used", used, limit)
				}
			}
		})
	}
	started.Wait()
	var disk int64
	entries, err := os.ReadDir(filepath.Join(dir, "objects"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		disk += allocated(t, st)
	}
	if used, _ := c.Usage(); used != disk {
		t.Errorf("%d bytes are counted, %d are on disk", used, disk)
	}
}
