package objects_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/remora-storage/remora/cache/budget"
	"github.com/remora-storage/remora/cache/objects"
)

// open opens a directory of objects with a budget of its own.
func open(t *testing.T, dir string, limit int64) (*objects.Dir, *budget.Budget) {
	t.Helper()
	b := budget.New(limit, slog.New(slog.DiscardHandler))
	d, err := objects.Open(dir, b, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.Evicts(func() int64 { return 0 }, d.AppendVictims)
	return d, b
}

// closeAndCheck closes a directory and compares what was counted with what is there.
func closeAndCheck(t *testing.T, d *objects.Dir, b *budget.Budget) {
	t.Helper()
	d.Close()
	sum, err := d.Check()
	if used, _ := b.Usage(); err != nil || used != sum {
		t.Errorf("%d bytes are accounted for, %d are there (%v)", used, sum, err)
	}
}

// allocated returns the bytes that a file takes on disk.
func allocated(t *testing.T, st os.FileInfo) int64 {
	t.Helper()
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestObjects: what was written comes back, over a restart too; what was not is absent or zeros.
func TestObjects(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "objects")
	o, b := open(t, dir, 0)
	want := make([]byte, 3<<20+123)
	for i := range want {
		want[i] = byte(i>>3 | 1)
	}
	o.WriteAt("v/1/seg/a", want, 0)
	o.WriteAt("v/1/seg/b", want[:10000], 8192+5) // whole pages of it alone
	read := func(o *objects.Dir) {
		t.Helper()
		for _, r := range []struct{ off, n int }{{0, 10}, {4095, 2}, {1<<20 - 7, 1<<20 + 9}, {5, 4000}, {3<<20 - 4096, 4096}} {
			got := make([]byte, r.n)
			if !o.ReadAt("v/1/seg/a", got, int64(r.off)) || !bytes.Equal(got, want[r.off:r.off+r.n]) {
				t.Errorf("%d bytes at %d are not there", r.n, r.off)
			}
		}
		got := make([]byte, 4096)
		if !o.ReadAt("v/1/seg/b", got, 12288) || !bytes.Equal(got, want[4096-5:8192-5]) {
			t.Error("a page is not there")
		}
		if o.ReadAt("v/1/seg/a", make([]byte, 10), 10<<20) || o.ReadAt("none", make([]byte, 10), 0) {
			t.Error("what is not there was read")
		}
	}
	read(o)
	used, _ := b.Usage()
	closeAndCheck(t, o, b)
	o, b = open(t, dir, 0)
	defer func() { closeAndCheck(t, o, b) }()
	read(o)
	if again, _ := b.Usage(); again != used {
		t.Errorf("%d bytes used before, %d after", used, again)
	}
	o.Drop("v/1/seg/a")
	o.Drop("v/1/seg/a")
	o.Drop("v/1/seg/b")
	if used, _ := b.Usage(); used != 0 {
		t.Errorf("%d bytes used by nothing", used)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%d files are left (%v)", len(left), err)
	}
}

// TestObjectsBudget: the budget holds while many write, read and drop, and the count of bytes is that of the disk.
func TestObjectsBudget(t *testing.T) {
	const limit = 8 << 20
	dir := filepath.Join(t.TempDir(), "objects")
	o, b := open(t, dir, limit)
	defer func() { closeAndCheck(t, o, b) }()
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
				if used, _ := b.Usage(); used > limit {
					t.Errorf("%d bytes of %d used", used, limit)
				}
			}
		})
	}
	started.Wait()
	var disk int64
	entries, err := os.ReadDir(dir)
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
	if used, _ := b.Usage(); used != disk {
		t.Errorf("%d bytes are counted, %d are on disk", used, disk)
	}
}
