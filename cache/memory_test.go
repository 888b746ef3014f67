package cache_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/internal/memorytest"
)

// waitsForMemory wants do to wait while a budget is spent, to leave with its context, and to end once there is memory.
func waitsForMemory(t *testing.T, m *memory.Budget, do func(context.Context) error) {
	t.Helper()
	giveBack, err := memorytest.Spend(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	defer giveBack()
	begin := func() (leave context.CancelCauseFunc, ended chan error) {
		ctx, leave := context.WithCancelCause(t.Context())
		ended = make(chan error, 1)
		go func() { ended <- do(ctx) }()
		for !busy(m) {
			select {
			case err := <-ended:
				t.Fatalf("it did not wait for memory: %v", err)
			case <-time.After(time.Millisecond):
			}
		}
		return leave, ended
	}
	gone := errors.New("gone")
	leave, ended := begin()
	leave(gone)
	if err := <-ended; !errors.Is(err, gone) {
		t.Errorf("it left with %v", err)
	}
	leave, ended = begin()
	defer leave(nil)
	giveBack()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// busy reports whether somebody waits for a budget.
func busy(m *memory.Budget) bool {
	one, ok := m.Try("one", 0)
	one.Release()
	return !ok
}

// TestCopyingTakesMemory: a unit that another layer has is copied once there is memory for it.
func TestCopyingTakesMemory(t *testing.T) {
	m := memory.New(1 << 20)
	im := newImage(t, 9, 1, 5000)
	c := open(t, t.TempDir(), cache.Options{Memory: m})
	wantAll(t, create(t, c, "old", im, &source{blob: im.blob}), im)
	src := &source{blob: im.blob}
	f := create(t, c, "new", im, src)
	waitsForMemory(t, m, func(ctx context.Context) error {
		_, err := f.ReadAt(ctx, make([]byte, 1), 4096)
		return err
	})
	if n := src.bytes.Load(); n != 0 {
		t.Errorf("fetched %d bytes that another layer had", n)
	}
}

// TestVerifyingTakesMemory: a layer's diffID is computed once there is memory for it.
func TestVerifyingTakesMemory(t *testing.T) {
	m := memory.New(1 << 20)
	im := newImage(t, 9, 3, 5000)
	f := create(t, open(t, t.TempDir(), cache.Options{Memory: m}), "one", im, &source{blob: im.blob})
	wantAll(t, f, im)
	waitsForMemory(t, m, func(ctx context.Context) error { return f.Verify(ctx, im.diffID) })
}

// large returns an image of one extent.
func large(t *testing.T, size int) *image {
	im := newImage(t, 1, 0, 1)
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i >> 12)
	}
	im.blob, im.diff, im.diffID = data, data, digest.FromBytes(data)
	im.bytes = append(im.bytes, data...)
	im.spec.Codec, im.spec.Units = blob.Plain, []blob.Unit{{Len: int64(size)}}
	im.spec.Extents = []cache.Extent{{Off: 4096, Len: uint32(size), Digest: sha256.Sum256(data)}}
	im.spec.ImageSize = int64(len(im.bytes))
	return im
}

// TestCopiesAreBounded: many units of 16 MiB that another layer has are copied together in memory for few.
func TestCopiesAreBounded(t *testing.T) {
	const size, copies = 16 << 20, 12
	im := large(t, size)
	c := open(t, t.TempDir(), cache.Options{Memory: memory.New(3 * size)})
	if err := create(t, c, "old", im, &source{blob: im.blob}).PrefetchAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	var files []*cache.File
	for i := range copies {
		files = append(files, create(t, c, fmt.Sprint(i), im, nil))
	}
	most := heap.Cost{Memory: 6 * size, CPU: time.Minute, Written: 2 * copies * size}
	took := most.Peaks(t, func() int64 {
		var all sync.WaitGroup
		for _, f := range files {
			all.Go(func() {
				if err := f.PrefetchAll(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		return 0
	})
	t.Logf("%d copies of %d MiB: %+v", copies, size>>20, took)
}

// TestVerifyingIsBounded: a large extent is hashed by pieces.
func TestVerifyingIsBounded(t *testing.T) {
	im := large(t, 48<<20)
	f := create(t, open(t, t.TempDir(), cache.Options{}), "one", im, &source{blob: im.blob})
	if err := f.PrefetchAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	var err error
	took := heap.Cost{Memory: 8 << 20, CPU: 20 * time.Second}.Peaks(t, func() int64 { err = f.Verify(t.Context(), im.diffID); return 0 })
	t.Logf("%+v", took)
	if err != nil {
		t.Error(err)
	}
}
