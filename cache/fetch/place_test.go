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
	f := oneUnit(t, p, src, plain)
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
	return ended
}

// streaming streams such an image. The channel gives what has come of that.
func streaming(t *testing.T, p *Pool, src *served, plain []byte, packedTo, plainTo io.Writer) chan error {
	t.Helper()
	f, ended := oneUnit(t, p, src, plain), make(chan error, 1)
	go func() { ended <- f.Stretches().Stream(t.Context(), 0, 1, packedTo, plainTo, nil) }()
	return ended
}

// oneUnit returns the Fetcher of an image of one extent in one unit of zstd.
func oneUnit(t *testing.T, p *Pool, src *served, plain []byte) *Fetcher {
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
	t.Cleanup(func() {
		f.Close(context.Canceled)
		dir.Forget(img)
		img.Close()
	})
	return f
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
					evil := fair.User(fmt.Sprintf("evil%d/", host))
					before := waits() + len(got)
					for range 40 {
						go func() {
							if one := p.placeFor(ctx, evil, prio); one.take() == nil {
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

// TestPlacesAreGivenBack: a unit that waits for its source, for more memory, or for who gets its packed bytes, has no place among those
// that decode.
func TestPlacesAreGivenBack(t *testing.T) {
	m := memory.New(128 << 20)
	p := NewPool(Options{Log: slog.New(slog.DiscardHandler), Memory: m})
	for how, begin := range map[string]func(*testing.T, *Pool, *served, []byte) chan error{
		"source": reading, "source of a stream": func(t *testing.T, p *Pool, src *served, plain []byte) chan error {
			return streaming(t, p, src, plain, nil, io.Discard)
		},
	} {
		t.Run(how, func(t *testing.T) {
			packed, plain := frames(t, maxHeld+2*stepBytes, 1<<20)
			src := &served{placed: "slow", blob: packed, from: 2 * stepBytes, goOn: make(chan struct{})}
			ended := begin(t, p, src, plain)
			until(t, "it to wait for the source", func() bool { return len(ended) > 0 || src.held.Load() })
			wantFree(t, p)
			close(src.goOn)
			if err := <-ended; err != nil {
				t.Error(err)
			}
			wantFree(t, p)
		})
	}
	t.Run("who takes packed bytes", func(t *testing.T) {
		packed, plain := frames(t, 10_000, 1<<20)
		to := &stuck{new(atomic.Int32), make(chan struct{})}
		ended := streaming(t, p, &served{placed: "slow", blob: packed, from: int64(len(packed))}, plain, to, nil)
		until(t, "it to wait for who takes them", func() bool { return len(ended) > 0 || to.began.Load() > 0 })
		wantFree(t, p)
		close(to.goOn)
		if err := <-ended; err != nil {
			t.Error(err)
		}
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

// stuck is a writer that takes nothing until it is let go on.
type stuck struct {
	began *atomic.Int32 // how many have something to write
	goOn  chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	s.began.Add(1)
	<-s.goOn
	return len(p), nil
}

// TestStreamsShareDecoding: of a hundred streams of one registry, as many decode as have its share of places, and units of another
// registry are read, and its streams end, while none of those does.
func TestStreamsShareDecoding(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // so that there are fewer places than requests to a host
	p := NewPool(Options{Log: slog.New(slog.DiscardHandler)})
	packed, plain := frames(t, 10_000, 64<<10)
	whole := func(host string) *served {
		return &served{placed: placed(host), blob: packed, from: int64(len(packed))}
	}
	var began atomic.Int32
	evil := &stuck{&began, make(chan struct{})}
	var all []chan error
	for range 100 {
		all = append(all, streaming(t, p, whole("evil"), plain, nil, evil))
	}
	waiting := func() int { w, _ := p.decoding.Waiting(); return w }
	until(t, "its streams", func() bool { return int(began.Load())+waiting() >= maxPrefetchOfOne })
	if n := began.Load(); n > 3*2 {
		t.Errorf("%d streams of one registry decode, and %d wait", n, waiting())
	}
	for range 3 {
		if err := <-reading(t, p, whole("honest"), plain); err != nil {
			t.Error(err)
		}
		var got bytes.Buffer
		if err := <-streaming(t, p, whole("honest"), plain, nil, &got); err != nil || !bytes.Equal(got.Bytes(), plain) {
			t.Errorf("%d bytes of %d: %v", got.Len(), len(plain), err)
		}
	}
	close(evil.goOn)
	for _, ended := range all {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	wantFree(t, p)
}
