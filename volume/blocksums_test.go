package volume

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/remote/store"
)

// metered counts the bytes that are read from a store.
type metered struct {
	store.Store
	read atomic.Int64
}

func (m *metered) Get(ctx context.Context, key string, off, n int64) ([]byte, store.Object, error) {
	p, o, err := m.Store.Get(ctx, key, off, n)
	m.read.Add(int64(len(p)))
	return p, o, err
}

// TestReadsParts: blocks of large frames that are read one by one cost little more than the blocks, and each is checked,
// also where the frame was found whole before.
func TestReadsParts(t *testing.T) {
	t.Parallel()
	const size, frame = 8 << 20, maxFrame * Block
	// fill makes a volume of whole frames, reads all blocks of it at random, and returns how many bytes the store was asked for.
	fill := func(t *testing.T, set func(*Options)) (v *Volume, st store.Store, want []byte, read int64) {
		v, sim, attach := newTestVolume(t, size, Remote)
		r := rand.New(rand.NewPCG(3, 3))
		want = make([]byte, size)
		for i := range want {
			want[i] = byte(r.Uint32())
		}
		if err := v.WriteAt(t.Context(), want, 0); err != nil {
			t.Fatal(err)
		}
		if err := v.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		v = attach()
		t.Cleanup(func() { v.Close() })
		m := &metered{Store: sim}
		v.opts.Store = m
		set(&v.opts)
		p := make([]byte, Block)
		for _, i := range r.Perm(size / Block) {
			if _, err := v.ReadAt(t.Context(), p, int64(i)*Block); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, want[i*Block:][:Block]) {
				t.Fatalf("block %d is wrong", i)
			}
		}
		return v, sim, want, m.read.Load()
	}
	// damaged is in the second block of the first frame.
	const damaged = segmentHeader + frameHeader + Block + 100
	right := func(t *testing.T, v *Volume, want []byte, block int) {
		t.Helper()
		p := make([]byte, Block)
		if _, err := v.ReadAt(t.Context(), p, int64(block)*Block); err != nil {
			t.Errorf("block %d: %v", block, err)
		} else if !bytes.Equal(p, want[block*Block:][:Block]) {
			t.Errorf("block %d is wrong", block)
		}
	}
	t.Run("from a store that is near", func(t *testing.T) {
		v, st, want, read := fill(t, func(o *Options) { o.Near = true })
		if read > 3*size {
			t.Errorf("%d bytes were read for %d", read, size)
		}
		for range 2 {
			corrupt(t, st, "/seg/", func([]byte) int { return damaged })
			if _, err := v.ReadAt(t.Context(), make([]byte, Block), Block); !errors.Is(err, ErrCorrupt) {
				t.Errorf("a block that has changed: %v", err)
			}
			right(t, v, want, 2)
			corrupt(t, st, "/seg/", func([]byte) int { return damaged }) // back again
			right(t, v, want, 1)
		}
	})
	t.Run("from the cache", func(t *testing.T) {
		dir := t.TempDir()
		c, err := cache.Open(dir, cache.Options{Limit: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		v, _, want, read := fill(t, func(o *Options) { o.Cache = c.Objects() })
		if read > size+size/4 {
			t.Errorf("%d bytes were read for %d", read, size)
		}
		files, err := filepath.Glob(filepath.Join(dir, "*", "*seg*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("nothing is cached: %v", err)
		}
		for _, path := range files {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("changed"), damaged); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				t.Fatal(err)
			}
		}
		m := v.opts.Store.(*metered)
		before := m.read.Load()
		right(t, v, want, 1)
		right(t, v, want, 2)
		if n := m.read.Load() - before; n < frame || n > 2*frame {
			t.Errorf("%d bytes were read where one frame was wrong", n)
		}
	})
}
