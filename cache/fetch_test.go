package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
)

// TestReadersShareAFetch: readers that all wait for an extent before it has come cause one request.
func TestReadersShareAFetch(t *testing.T) { synctest.Test(t, readersShareAFetch) }

func readersShareAFetch(t *testing.T) {
	im := newImage(t, 4, 1, 100_000)
	gate := make(chan struct{})
	src := &source{blob: im.blob}
	src.fault = func(context.Context, int64, int64, int) (io.ReadCloser, error) { <-gate; return nil, nil }
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { wantAll(t, f, im) })
	}
	synctest.Wait() // all have asked
	close(gate)
	all.Wait()
	if n := src.opens.Load(); n != 1 {
		t.Errorf("%d fetches for one extent", n)
	}
}

// TestReaderLeaves: a reader whose context ends leaves at once, and the fetch ends with the last.
func TestReaderLeaves(t *testing.T) {
	im := newImage(t, 5, 1, 1000)
	asked, ended := make(chan struct{}), make(chan error, 1)
	src := &source{blob: im.blob}
	src.fault = func(ctx context.Context, _, _ int64, _ int) (io.ReadCloser, error) {
		close(asked)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil, context.Cause(ctx)
	}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, err := f.ReadAt(ctx, make([]byte, 10), 4096)
		got <- err
	}()
	<-asked
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("reader got %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("fetch went on for nobody")
	}
	src.fault = nil
	wantAll(t, f, im)
}

func TestDeadline(t *testing.T) {
	im := newImage(t, 6, 1, 1000)
	src := &source{blob: im.blob}
	src.fault = func(ctx context.Context, _, _ int64, _ int) (io.ReadCloser, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := open(t, dir, cache.Options{Policy: cache.Policy{Deadline: 30 * time.Second}})
		defer c.Close()
		f := create(t, c, "a", im, src)
		began := time.Now()
		if _, err := f.ReadAt(context.Background(), make([]byte, 10), 4096); err == nil {
			t.Error("no error")
		}
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("waited %s", took)
		}
	})
}

// TestWrongBytes: bytes that do not match their digest are asked for again and never shown.
func TestWrongBytes(t *testing.T) {
	im := newImage(t, 7, 20, 5000)
	bad := bytes.Clone(im.blob)
	for i := 100; i < len(bad); i += 777 {
		bad[i] ^= 0xff
	}
	for name, good := range map[string]int{"right at the second try": 1, "never right": 99} {
		t.Run(name, func(t *testing.T) {
			src := &source{blob: im.blob}
			src.fault = func(_ context.Context, off, n int64, try int) (io.ReadCloser, error) {
				if try >= good {
					return nil, nil
				}
				return io.NopCloser(bytes.NewReader(bad[off : off+n])), nil
			}
			c := open(t, t.TempDir(), cache.Options{})
			defer closeAndCheck(t, c)
			f := create(t, c, "a", im, src)
			p := make([]byte, len(im.bytes))
			_, err := f.ReadAt(t.Context(), p, 0)
			if good == 1 && (err != nil || !bytes.Equal(p, im.bytes)) {
				t.Errorf("got %v", err)
			}
			if good == 99 && err == nil {
				t.Error("wrong bytes were accepted")
			}
		})
	}
}

func TestShortSource(t *testing.T) {
	im := newImage(t, 8, 5, 5000)
	src := &source{blob: im.blob}
	src.fault = func(_ context.Context, off, n int64, _ int) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(im.blob[off:off+n/2]), failing{})), nil
	}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	if _, err := f.ReadAt(t.Context(), make([]byte, len(im.bytes)), 0); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	src.fault = nil
	wantAll(t, f, im)
}

// TestFailedFetchEndsAtOnce: once a reader knows that a fetch failed, nobody who comes later gets its
// error, whichever of its units they ask for.
func TestFailedFetchEndsAtOnce(t *testing.T) {
	im := newImage(t, 12, 1500, 10)
	first, last := im.spec.Extents[0], im.spec.Extents[len(im.spec.Extents)-1]
	var down atomic.Bool
	src := &source{blob: im.blob}
	src.fault = func(context.Context, int64, int64, int) (io.ReadCloser, error) {
		if down.Load() {
			return nil, errBroken
		}
		return nil, nil
	}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	for k := range 20 {
		id := fmt.Sprint(k)
		f := create(t, c, id, im, src)
		down.Store(true)
		if _, err := f.ReadAt(t.Context(), make([]byte, first.Len), first.Off); !errors.Is(err, errBroken) {
			t.Fatalf("got %v", err)
		}
		down.Store(false)
		wantRange(t, f, im, int(last.Off), int(last.Len))
		if err := c.Remove(id); err != nil {
			t.Fatal(err)
		}
	}
}

var errBroken = errors.New("broken")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }

// TestFillWithoutRoom: where the kernel reads the file, a range that does not fit is no space left,
// after the deadline; with room it succeeds.
func TestFillWithoutRoom(t *testing.T) {
	im, hog := newImage(t, 5, 20, 9000), newImage(t, 6, 40, 9000)
	c := open(t, t.TempDir(), cache.Options{Limit: 280_000, Policy: cache.Policy{Deadline: 300 * time.Millisecond}})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, &source{blob: im.blob})
	f.Pin()
	defer f.Unpin()
	other := create(t, c, "hog", hog, &source{blob: hog.blob})
	if err := other.Keep(true); err != nil {
		t.Fatal(err)
	}
	wantAll(t, other, hog) // as much of it as fits
	if f.Fits() {
		t.Error("an image that does not fit beside what is kept is said to fit")
	}
	if err := f.Fill(t.Context(), 0, 0); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v, want no space left", err)
	}
	if err := other.Keep(false); err != nil {
		t.Fatal(err)
	}
	if err := f.Fill(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(f.Path())
	if err != nil || !bytes.Equal(p, im.bytes) {
		t.Errorf("the file has other bytes: %v", err)
	}
	if !f.Complete() || f.Commit() != nil {
		t.Error("not complete, or not recorded")
	}
}

// TestUnreachable: a source that does not answer is asked again, for as long as somebody waits.
func TestUnreachable(t *testing.T) {
	im := newImage(t, 7, 20, 5000)
	for name, wait := range map[string]bool{"wait": true, "eio": false} {
		t.Run(name, func(t *testing.T) {
			c := open(t, t.TempDir(), cache.Options{
				Policy: cache.Policy{Wait: wait, Deadline: 500 * time.Millisecond}, Unreachable: func(error) bool { return true },
			})
			defer closeAndCheck(t, c)
			src := &source{blob: im.blob}
			var down atomic.Bool
			down.Store(true)
			src.fault = func(context.Context, int64, int64, int) (io.ReadCloser, error) {
				if down.Load() {
					return nil, errors.New("nobody answers")
				}
				return nil, nil
			}
			f := create(t, c, "a", im, src)
			done := make(chan error, 1)
			go func() {
				_, err := f.ReadAt(blockdev.WithCaller(context.Background(), 42), make([]byte, 100), int64(len(im.bytes)-5000))
				done <- err
			}()
			if !wait {
				if err := <-done; err == nil || !strings.Contains(err.Error(), "nobody answers") {
					t.Errorf("got %v", err)
				}
				return
			}
			for range 1000 {
				if w := c.Waiting(0); len(w) == 1 && w[0].PID == 42 && w[0].ID == "a" && w[0].Trouble != nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
			select {
			case err := <-done:
				t.Fatalf("did not wait: %v", err)
			case <-time.After(time.Second): // twice the deadline, which is not for it
			}
			down.Store(false)
			if err := <-done; err != nil {
				t.Error(err)
			}
			if w := c.Waiting(0); len(w) != 0 {
				t.Errorf("waits: %+v", w)
			}
		})
	}
}
