package suite

import (
	"bytes"
	"context"
	"errors"
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

// half returns the middle of a device. Requests that are left begin there: what comes first, such as an image's metadata,
// may be at hand.
func half(d blockdev.Device) int64 { return d.Size() / 2 }

// readerLeaves: a read whose context ends returns soon, wrong bytes never, and the device is usable as before.
func readerLeaves(t *testing.T, d blockdev.Device) {
	b := int64(d.BlockSize())
	n := max(b, 4096)
	leaves(t, "a read", func(ctx context.Context, i int64) error {
		p := bytes.Repeat([]byte{1}, int(n))
		k, err := d.ReadAt(ctx, p, half(d)+i*n)
		if err == nil && (int64(k) != n || differ(p, make([]byte, n)) >= 0) {
			t.Errorf("read %d of %d bytes, zeros up to %d", k, n, differ(p, make([]byte, n)))
		}
		return err
	})
	leaves(t, "a look for extents", func(ctx context.Context, i int64) error {
		return blockdev.Extents(ctx, d, half(d)+i*n, n, func(blockdev.Extent) bool { return true })
	})
	p := bytes.Repeat([]byte{1}, int(16*n))
	if k, err := d.ReadAt(context.Background(), p, half(d)); err != nil || int64(k) != 16*n || differ(p, make([]byte, 16*n)) >= 0 {
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

// watched is a context that says when somebody first looks whether it has ended, as who waits must.
type watched struct {
	context.Context
	look   sync.Once
	looked chan struct{}
}

func (w *watched) Done() <-chan struct{} {
	w.look.Do(func() { close(w.looked) })
	return w.Context.Done()
}

// waiterLeaves: a request that waits returns soon after its context has ended, with that error, and one whose context has
// ended before does not begin to wait. The device is usable when what they waited for has come.
func waiterLeaves(t *testing.T, h Held) {
	if len(h.Ops) == 0 {
		t.Fatal("nothing waits")
	}
	n := int64(max(h.BlockSize(), 4096))
	off := half(h.Device)
	for _, op := range h.Ops {
		waiters(t, op.String(), func(ctx context.Context, i int64) error { return request(t, ctx, h.Device, op, off+i*n, n) })
	}
	h.Let()
	ctx := context.Background()
	want := make([]byte, 16*n)
	if w, ok := h.Device.(blockdev.Writer); ok {
		want = bytes.Repeat([]byte{3}, int(16*n))
		if err := errors.Join(w.WriteAt(ctx, want, off), w.Flush(ctx)); err != nil {
			t.Fatalf("after those that waited have left: %v", err)
		}
	}
	got := bytes.Repeat([]byte{1}, int(16*n))
	if _, err := h.ReadAt(ctx, got, off); err != nil || differ(got, want) >= 0 {
		t.Errorf("after those that waited have left: %v, right up to %d", err, differ(got, want))
	}
}

// waiters runs requests that wait, and ends the context of half of them before, and of the others when all of these wait.
func waiters(t *testing.T, what string, request func(ctx context.Context, i int64) error) {
	t.Helper()
	ends, end := context.WithCancel(context.Background())
	defer end()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	const requests = 16
	errs := make(chan error, requests)
	var running sync.WaitGroup
	late := time.NewTimer(soon)
	defer late.Stop()
	var all []*watched
	for i := range int64(requests) {
		ctx := ended
		if i%2 == 1 {
			w := &watched{Context: ends, looked: make(chan struct{})}
			all, ctx = append(all, w), w
		}
		running.Go(func() { errs <- request(ctx, i) })
	}
	for _, w := range all {
		select {
		case <-w.looked:
		case <-late.C:
			t.Fatalf("a %s that waits has not looked at its context for %v", what, soon)
		}
	}
	end()
	for range requests {
		select {
		case err := <-errs:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("a %s that waits, when its context ended: %v", what, err)
			}
		case <-late.C:
			t.Fatalf("a %s that waits goes on for %v after its context has ended", what, soon)
		}
	}
	running.Wait()
}

// request makes a request of a kind.
func request(t *testing.T, ctx context.Context, d blockdev.Device, op blockdev.Op, off, n int64) error {
	switch op {
	case blockdev.OpRead:
		_, err := d.ReadAt(ctx, make([]byte, n), off)
		return err
	case blockdev.OpMap:
		return blockdev.Extents(ctx, d, off, n, func(blockdev.Extent) bool { return true })
	}
	w, ok := d.(blockdev.Writer)
	p := bytes.Repeat([]byte{2}, int(n))
	switch {
	case ok && op == blockdev.OpWrite:
		return w.WriteAt(ctx, p, off)
	case ok && op == blockdev.OpWriteSync:
		return blockdev.WriteSync(ctx, w, p, off)
	case ok && op == blockdev.OpFlush:
		return w.Flush(ctx)
	case ok && op == blockdev.OpTrim:
		return blockdev.Trim(ctx, w, off, n)
	case ok && op == blockdev.OpZero:
		return blockdev.WriteZeroes(ctx, w, off, n, blockdev.Zeroing{})
	}
	t.Errorf("no %s of this device can wait", op)
	return context.Canceled
}
