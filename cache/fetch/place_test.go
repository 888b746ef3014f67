package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/budget"
	"github.com/remora-storage/remora/cache/image"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/internal/memory"
)

// served is a source at a place of its own, which says nothing beyond an offset before it is let go on.
type served struct {
	placed
	blob []byte
	from int64
	goOn chan struct{}
	held atomic.Bool // it is waited for
}

func (s *served) Open(ctx context.Context, off, n int64, _ int) (io.ReadCloser, error) {
	rest := func() (io.Reader, error) {
		s.held.Store(true)
		select {
		case <-s.goOn:
			return bytes.NewReader(s.blob[s.from : off+n]), nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(s.blob[off:s.from]), &later{open: rest})), nil
}

type later struct {
	open func() (io.Reader, error)
	r    io.Reader
}

func (l *later) Read(p []byte) (n int, err error) {
	if l.r == nil {
		if l.r, err = l.open(); err != nil {
			return 0, err
		}
	}
	return l.r.Read(p)
}

// frames returns frames of zstd with windows, each of some noise, and all that is in them.
func frames(t *testing.T, noise int, windows ...int) (packed, plain []byte) {
	t.Helper()
	var out bytes.Buffer
	for _, window := range windows {
		w, err := zstd.NewWriter(&out, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, noise)
		for i := range p {
			p[i] = byte(rand.Uint32())
		}
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		plain = append(plain, p...)
	}
	return out.Bytes(), plain
}

// reading reads an image of one extent in one unit of zstd. The channel gives what has come of that.
func reading(t *testing.T, p *Pool, src *served, plain []byte) chan error {
	t.Helper()
	dir, err := image.Open(t.TempDir(), image.Options{Budget: budget.New(0, p.log), Log: p.log})
	if err != nil {
		t.Fatal(err)
	}
	img, err := dir.New("one", &image.Spec{
		ImageSize: 4096 + int64(len(plain)), MetaSize: 4096, Meta: bytes.NewReader(make([]byte, 4096)), Codec: blob.Zstd,
		Units:   []blob.Unit{{Len: int64(len(src.blob))}},
		Extents: []image.Extent{{Off: 4096, Len: uint32(len(plain)), Digest: sha256.Sum256(plain)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir.Add(img)
	f := p.Fetcher(img, src, Policy{Wait: true})
	ended := make(chan error, 1)
	go func() {
		got := make([]byte, len(plain))
		_, err := f.ReadAt(t.Context(), got, 4096)
		if err == nil && !bytes.Equal(got, plain) {
			err = fmt.Errorf("wrong bytes")
		}
		f.Await()
		ended <- err
	}()
	t.Cleanup(func() {
		f.Close(context.Canceled)
		dir.Forget(img)
		img.Close()
	})
	return ended
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for began := time.Now(); !cond(); time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("waited a minute for", what)
		}
	}
}

// takePlaces takes all that are free among those that decode, each for a host of its own.
func takePlaces(p *Pool) (releases []func()) {
	for i := range 5 * runtime.GOMAXPROCS(0) {
		if release, ok := p.decoding.Try(fair.User(fmt.Sprint(i, "/a"))); ok {
			releases = append(releases, release)
		}
	}
	return releases
}

// wantFree insists on all places becoming free.
func wantFree(t *testing.T, p *Pool) {
	t.Helper()
	until(t, "all places to be free", func() bool {
		all := takePlaces(p)
		for _, release := range all {
			release()
		}
		return len(all) == 4*runtime.GOMAXPROCS(0)
	})
}

// TestDecodingIsShared: where the units of other hosts have all places of those that decode, and more of them wait, one of another host
// is the next, a small one and one that is decoded as it comes.
func TestDecodingIsShared(t *testing.T) {
	for name, size := range map[string]int{"small": 10_000, "large": maxHeld + stepBytes} {
		for _, prio := range []priority{demand, prefetch} {
			t.Run(fmt.Sprint(name, " beside ", prio), func(t *testing.T) {
				p := NewPool(Options{Log: slog.New(slog.DiscardHandler)})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				// As many hosts as leave nothing free, each with more than it gets.
				got, places := make(chan func(), 1000), 4*runtime.GOMAXPROCS(0)
				waits := func() int { w, f := p.decoding.Waiting(); return w + f }
				for host := 0; len(got) < places; host++ {
					evil := &job{f: &Fetcher{pool: p, src: placed(fmt.Sprint("evil", host))}, prio: prio}
					before := waits() + len(got)
					for range 40 {
						go func() {
							if one := evil.placeFor(ctx); one.take() == nil {
								got <- one.give
							}
						}()
					}
					until(t, "its units", func() bool { return waits()+len(got) == before+40 })
				}
				before := waits()
				packed, plain := frames(t, size, 1<<20)
				ended := reading(t, p, &served{placed: "honest", blob: packed, from: int64(len(packed))}, plain)
				until(t, "it to wait for a place", func() bool { return waits() > before || len(ended) > 0 })
				if len(ended) > 0 {
					t.Fatal("it was decoded without a place")
				}
				(<-got)()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if waits() != before {
					t.Errorf("%d wait, %d did before", waits(), before)
				}
			})
		}
	}
}

// TestPlacesAreGivenBack: a unit that waits for its source, or for more memory, has no place among those that decode.
func TestPlacesAreGivenBack(t *testing.T) {
	m := memory.New(128 << 20)
	p := NewPool(Options{Log: slog.New(slog.DiscardHandler), Memory: m})
	t.Run("source", func(t *testing.T) {
		packed, plain := frames(t, maxHeld+2*stepBytes, 1<<20)
		src := &served{placed: "slow", blob: packed, from: 2 * stepBytes, goOn: make(chan struct{})}
		ended := reading(t, p, src, plain)
		until(t, "it to wait for the source", func() bool { return len(ended) > 0 || src.held.Load() })
		wantFree(t, p)
		close(src.goOn)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		wantFree(t, p)
	})
	t.Run("memory", func(t *testing.T) {
		packed, plain := frames(t, 1<<20, 64<<10, 16<<20)
		taken := takePlaces(p)
		last := taken[len(taken)-1] // of a host that has no other
		var others []*memory.Share  // which leave a window of the larger kind no room
		for _, n := range []int64{80 << 20, 8 << 20} {
			share, err := m.Acquire(t.Context(), fair.User(fmt.Sprint("of", n, "/a")), n)
			if err != nil {
				t.Fatal(err)
			}
			others = append(others, share)
		}
		ended := reading(t, p, &served{placed: "honest", blob: packed, from: int64(len(packed))}, plain)
		until(t, "it to wait for a place", func() bool { _, first := p.decoding.Waiting(); return first > 0 })
		last() // which it gets, finds that its second frame needs more memory, and gives back
		until(t, "its place", func() bool {
			release, ok := p.decoding.Try("last/a")
			if ok {
				release()
			}
			return ok
		})
		if len(ended) > 0 {
			t.Fatalf("it did not wait for memory: %v", <-ended)
		}
		for _, share := range others {
			share.Release()
		}
		for _, release := range taken[:len(taken)-1] {
			release()
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		wantFree(t, p)
	})
}
