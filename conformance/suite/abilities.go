package suite

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/remora-storage/remora/blockdev"
)

// leaves runs requests, half of them with a context that has ended and the others with one that ends meanwhile, and insists
// that all return soon: done, or with the context's error.
func leaves(t *testing.T, what string, request func(ctx context.Context, i int64) error) {
	t.Helper()
	const requests = 16
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	ends, cancel := context.WithCancel(context.Background())
	errs := make([]error, requests)
	var running sync.WaitGroup
	for i := range int64(requests) {
		ctx := ends
		if i%2 == 0 {
			ctx = ended
		}
		running.Go(func() { errs[i] = request(ctx, i) })
	}
	cancel()
	returned := make(chan struct{})
	go func() { running.Wait(); close(returned) }()
	select {
	case <-returned:
	case <-time.After(soon):
		t.Fatalf("%s goes on for %v after its context has ended", what, soon)
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s, when its context ended: %v", what, err)
		}
	}
}

// readerLeaves: a read whose context ends returns soon, wrong bytes never, and the device is usable as before.
func readerLeaves(t *testing.T, d blockdev.Device) {
	b := int64(d.BlockSize())
	n := max(b, 4096)
	leaves(t, "a read", func(ctx context.Context, i int64) error {
		p := bytes.Repeat([]byte{1}, int(n))
		k, err := d.ReadAt(ctx, p, i*n)
		if err == nil && (int64(k) != n || differ(p, make([]byte, n)) >= 0) {
			t.Errorf("read %d of %d bytes, zeros up to %d", k, n, differ(p, make([]byte, n)))
		}
		return err
	})
	leaves(t, "a look for extents", func(ctx context.Context, i int64) error {
		return blockdev.Extents(ctx, d, i*n, n, func(blockdev.Extent) bool { return true })
	})
	p := bytes.Repeat([]byte{1}, int(16*n))
	if k, err := d.ReadAt(context.Background(), p, 0); err != nil || int64(k) != 16*n || differ(p, make([]byte, 16*n)) >= 0 {
		t.Errorf("after readers have left: %d bytes, %v, zeros up to %d", k, err, differ(p, make([]byte, 16*n)))
	}
}

// writerLeaves: a change whose context ends returns soon, may be there or not, and what is written later counts.
func writerLeaves(t *testing.T, d blockdev.Writer) {
	ctx := context.Background()
	b := int64(d.BlockSize())
	n := max(b, 4096)
	for _, change := range []struct {
		what string
		do   func(ctx context.Context, i int64) error
	}{
		{"a write", func(ctx context.Context, i int64) error { return d.WriteAt(ctx, bytes.Repeat([]byte{2}, int(n)), i*n) }},
		{"a durable write", func(ctx context.Context, i int64) error {
			return blockdev.WriteSync(ctx, d, bytes.Repeat([]byte{2}, int(n)), i*n)
		}},
		{"zeroing", func(ctx context.Context, i int64) error {
			return blockdev.WriteZeroes(ctx, d, i*n, n, blockdev.Zeroing{})
		}},
		{"trimming", func(ctx context.Context, i int64) error { return blockdev.Trim(ctx, d, i*n, n) }},
		{"a flush", func(ctx context.Context, _ int64) error { return d.Flush(ctx) }},
	} {
		if err := d.WriteAt(ctx, bytes.Repeat([]byte{1}, int(16*n)), 0); err != nil {
			t.Fatal(err)
		}
		leaves(t, change.what, change.do)
		got := make([]byte, 16*n)
		if _, err := d.ReadAt(ctx, got, 0); err != nil {
			t.Fatalf("after %s was left: %v", change.what, err)
		}
		for i, v := range got {
			if v > 2 {
				t.Fatalf("after %s was left, byte %d is %d", change.what, i, v)
			}
		}
	}
	want := bytes.Repeat([]byte{3}, int(16*n))
	if err := errors.Join(d.WriteAt(ctx, want, 0), d.Flush(ctx)); err != nil {
		t.Fatalf("after writers have left: %v", err)
	}
	got := make([]byte, 16*n)
	if _, err := d.ReadAt(ctx, got, 0); err != nil || differ(got, want) >= 0 {
		t.Errorf("after writers have left: %v, right up to %d", err, differ(got, want))
	}
}

// now: what a Quick device answers without waiting is what ReadAt and WriteAt would, and it refuses what does not fit.
func now(t *testing.T, d blockdev.Device) {
	q, ok := d.(blockdev.Quick)
	if !ok {
		return
	}
	ctx := context.Background()
	b, size := int64(d.BlockSize()), d.Size()
	for _, off := range []int64{size, size - b, 1 << 62} {
		if q.ReadNow(make([]byte, 2*b), off) {
			t.Errorf("read %d bytes at %d of %d now", 2*b, off, size)
		}
		if q.WriteNow(make([]byte, 2*b), off) {
			t.Errorf("wrote %d bytes at %d of %d now", 2*b, off, size)
		}
	}
	w, writer := d.(blockdev.Writer)
	if !writer {
		if q.WriteNow(make([]byte, b), 0) {
			t.Error("wrote to what cannot be written to")
		}
		return
	}
	rnd := rand.New(rand.NewPCG(1, 8))
	reads, writes := 0, 0
	for range 300 {
		n := (1 + rnd.Int64N(64<<10)) / b * b
		off := rnd.Int64N(size-n+1) / b * b
		want := make([]byte, n)
		fill(rnd, want)
		if q.WriteNow(want, off) {
			writes++
		} else if err := w.WriteAt(ctx, want, off); err != nil { // a part may be written
			t.Fatal(err)
		}
		got := make([]byte, n)
		if q.ReadNow(got, off) {
			reads++
			if differ(got, want) >= 0 {
				t.Fatalf("%d bytes at %d, read now: right up to %d", n, off, differ(got, want))
			}
		}
		if _, err := d.ReadAt(ctx, got, off); err != nil || differ(got, want) >= 0 {
			t.Fatalf("%d bytes at %d: %v, right up to %d", n, off, err, differ(got, want))
		}
	}
	t.Logf("now: %d reads, %d writes of 300", reads, writes)
}

// mapped: the memory of a Mapped device is what is read, and what is written to it was written.
func mapped(t *testing.T, d blockdev.Device) {
	m, ok := d.(blockdev.Mapped)
	if !ok {
		return
	}
	w, writer := d.(blockdev.Writer)
	if !writer {
		return // nothing but zeros to look at, which the reads have seen
	}
	ctx := context.Background()
	b, size := int64(d.BlockSize()), d.Size()
	rnd := rand.New(rand.NewPCG(1, 9))
	for range 300 {
		n := (1 + rnd.Int64N(64<<10)) / b * b
		off := rnd.Int64N(size-n+1) / b * b
		want := make([]byte, n)
		fill(rnd, want)
		if rnd.IntN(2) == 0 {
			if k := copy(m.View(off, n, true), want); int64(k) != n {
				t.Fatalf("a view of %d bytes has %d", n, k)
			}
		} else if err := w.WriteAt(ctx, want, off); err != nil {
			t.Fatal(err)
		}
		if v := m.View(off, n, false); int64(len(v)) != n || differ(v, want) >= 0 {
			t.Fatalf("a view of %d bytes at %d has %d, right up to %d", n, off, len(v), differ(v, want))
		}
		got := make([]byte, n)
		if _, err := d.ReadAt(ctx, got, off); err != nil || differ(got, want) >= 0 {
			t.Fatalf("%d bytes at %d: %v, right up to %d", n, off, err, differ(got, want))
		}
		at := off
		if err := blockdev.Extents(ctx, d, off, n, func(e blockdev.Extent) bool {
			if e.Zero {
				t.Errorf("%d bytes at %d are said to be zeros", e.Len, at)
			}
			at += e.Len
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
}
