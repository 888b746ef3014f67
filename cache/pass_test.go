package cache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/remora-storage/remora/cache"
)

// A rangeless source serves no range, but all of its blob.
type rangeless struct {
	source
	wholes  atomic.Int64 // how many times
	came    atomic.Int64 // bytes that were read
	doubted atomic.Int64
	tries   [][]byte      // what comes by these instead
	begin   chan struct{} // an answer waits for it; nil for never
	hold    chan struct{} // and for this before its second half
	over    chan struct{} // is told of the end of an answer; nil for nobody
}

var errNoRange = errors.New("no range is served")

func newRangeless(blob []byte) *rangeless {
	s := &rangeless{source: source{blob: blob}}
	s.fault = func(context.Context, int64, int64, int) (io.ReadCloser, error) { return nil, errNoRange }
	return s
}

func (s *rangeless) OnlyWhole(err error) bool { return errors.Is(err, errNoRange) }
func (s *rangeless) Doubt()                   { s.doubted.Add(1) }

func (s *rangeless) Whole(ctx context.Context, try int) (io.ReadCloser, error) {
	s.wholes.Add(1)
	blob := s.blob
	if try < len(s.tries) {
		blob = s.tries[try]
	}
	if s.begin != nil {
		select {
		case <-s.begin:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return &half{s: s, ctx: ctx, r: bytes.NewReader(blob)}, nil
}

// asked returns when so many ranges were asked for in vain.
func (s *rangeless) asked(n int64) {
	for s.opens.Load() < n {
		time.Sleep(time.Millisecond)
	}
}

// lastOf returns where the last byte of an image's data is.
func lastOf(im *image) int {
	e := &im.spec.Extents[len(im.spec.Extents)-1]
	return int(e.Off) + int(e.Len) - 1
}

type half struct {
	s   *rangeless
	ctx context.Context
	r   *bytes.Reader
}

func (h *half) Read(p []byte) (int, error) {
	middle := h.r.Size() / 2
	if at := h.r.Size() - int64(h.r.Len()); at < middle {
		p = p[:min(int64(len(p)), middle-at)]
	} else if h.s.hold != nil {
		select {
		case <-h.s.hold:
		case <-h.ctx.Done():
			return 0, context.Cause(h.ctx)
		}
	}
	n, err := h.r.Read(p)
	h.s.came.Add(int64(n))
	return n, err
}

func (h *half) Close() error {
	if h.s.over != nil {
		h.s.over <- struct{}{}
	}
	return nil
}

// TestOnlyWhole: where no range is to be had, all that is missing comes by one request for the whole blob, however many ask, and
// wherever; what nobody has asked for, too, and what the check of the layer lacks.
func TestOnlyWhole(t *testing.T) {
	im := newImage(t, 31, 40, 50_000)
	for name, read := range map[string]func(f *cache.File) error{
		"readers": func(f *cache.File) error {
			var all sync.WaitGroup
			for i := range 20 {
				all.Go(func() { wantRange(t, f, im, len(im.bytes)*i/20, len(im.bytes)/20) })
			}
			all.Wait()
			return nil
		},
		"the last byte": func(f *cache.File) error { wantRange(t, f, im, lastOf(im), 1); return nil },
		"the kernel": func(f *cache.File) error {
			f.Pin()
			defer f.Unpin()
			return f.Fill(t.Context(), int64(len(im.bytes))/2, 1)
		},
		"completing": func(f *cache.File) error { return f.PrefetchAll(t.Context()) },
		"checking":   func(f *cache.File) error { return f.Verify(t.Context(), im.diffID) },
		"copying": func(f *cache.File) error {
			var got bytes.Buffer
			if err := f.Stream(t.Context(), im.diffID, &got, nil); err != nil || !bytes.Equal(got.Bytes(), im.blob) {
				t.Errorf("%d bytes of %d, %v", got.Len(), len(im.blob), err)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			src := newRangeless(im.blob)
			c := open(t, t.TempDir(), cache.Options{})
			defer closeAndCheck(t, c)
			f := create(t, c, "a", im, src)
			if err := read(f); err != nil {
				t.Fatal(err)
			}
			if name != "checking" && name != "copying" {
				if err := f.PrefetchAll(t.Context()); err != nil {
					t.Error(err)
				}
			}
			wantAll(t, f, im)
			if n := src.wholes.Load(); n != 1 {
				t.Errorf("all of it was asked for %d times", n)
			}
			if err := f.Verify(t.Context(), im.diffID); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOnlyWholeWithoutRoom: where there is no room for what comes by, readers get what they ask for all the same, the limit is kept, and no
// more comes than somebody waits for.
func TestOnlyWholeWithoutRoom(t *testing.T) {
	im := newImage(t, 32, 40, 50_000)
	src := newRangeless(im.blob)
	limit := int64(64 << 10)
	c := open(t, t.TempDir(), cache.Options{Limit: limit})
	f := create(t, c, "a", im, src)
	for _, at := range []int{lastOf(im), len(im.bytes) / 2, lastOf(im), 5000} {
		wantRange(t, f, im, at, 1)
		if used, _ := c.Usage(); used > limit {
			t.Errorf("%d bytes of %d are used", used, limit)
		}
	}
	if err := c.Close(); err != nil { // which waits for what is under way
		t.Error(err)
	}
	if n := src.came.Load(); n > 3*int64(len(im.blob)) {
		t.Errorf("%d bytes came, for a blob of %d and four readers", n, len(im.blob))
	}
}

// TestOnlyWholeLeft: a reader that leaves does not wait for the blob, nor do others that have theirs; those that come too late for what is
// under way get it from the next one. Closing ends it.
func TestOnlyWholeLeft(t *testing.T) {
	im := newImage(t, 33, 40, 50_000)
	src := newRangeless(im.blob)
	src.hold = make(chan struct{})
	c := open(t, t.TempDir(), cache.Options{Limit: 1 << 20})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	wantRange(t, f, im, 5000, 1) // of the first half
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := f.ReadAt(ctx, make([]byte, 1), int64(lastOf(im)))
		left <- err
	}()
	src.asked(2)
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("a reader that left: %v", err)
	}
	if err := c.Remove("a"); err != nil {
		t.Error(err)
	}
	if _, err := f.ReadAt(t.Context(), make([]byte, 1), int64(lastOf(im))); err == nil {
		t.Error("what was removed was read")
	}
	close(src.hold)
	again := create(t, c, "a", im, src)
	wantAll(t, again, im)
}

// TestOnlyWholeCheckedWithGaps: the check of a layer of which much is missing, here and there, makes one request.
func TestOnlyWholeCheckedWithGaps(t *testing.T) {
	im := newImage(t, 39, 40, 50_000)
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, &source{blob: im.blob})
	var some []uint32
	for u := 1; u < len(im.spec.Units); u += 2 {
		some = append(some, uint32(u))
	}
	if err := f.Prefetch(t.Context(), some); err != nil {
		t.Fatal(err)
	}
	if f.Complete() {
		t.Fatal("nothing is missing")
	}
	src := newRangeless(im.blob)
	f.SetSource(src)
	if err := f.Verify(t.Context(), im.diffID); err != nil {
		t.Error(err)
	}
	if n, came := src.wholes.Load(), src.came.Load(); n != 1 || came > int64(len(im.blob)) {
		t.Errorf("all of it was asked for %d times, and %d bytes came of %d", n, came, len(im.blob))
	}
	wantAll(t, f, im)
}

// TestOnlyWholeForFew: where the image does not fit, no more comes than somebody waits for, and nothing else is evicted for it. Those that
// ask while that ends are served by the next answer.
func TestOnlyWholeForFew(t *testing.T) {
	im, other := newImage(t, 35, 200, 50_000), newImage(t, 36, 10, 20_000)
	src := newRangeless(im.blob)
	src.over = make(chan struct{}, 100)
	c := open(t, t.TempDir(), cache.Options{Limit: 3 << 20})
	defer closeAndCheck(t, c)
	beside := create(t, c, "other", other, &source{blob: other.blob})
	wantAll(t, beside, other)
	f := create(t, c, "a", im, src)
	wantRange(t, f, im, 5000, 1)
	<-src.over
	if n := src.came.Load(); n > int64(len(im.blob))/4 {
		t.Fatalf("%d bytes came, of %d", n, len(im.blob))
	}
	if !beside.Complete() {
		t.Fatal("another image was evicted for what nobody has asked for")
	}
	var all sync.WaitGroup
	var once sync.Once
	ending := make(chan struct{})
	defer c.Observe(func(e cache.Event) {
		if e.For != "prefetch" {
			return
		}
		once.Do(func() {
			defer close(ending)
			before := src.opens.Load()
			for i := range 3 {
				all.Go(func() { wantRange(t, f, im, len(im.bytes)*(2*i+3)/8, 1) })
				src.asked(before + int64(i) + 1)
			}
		})
	})()
	wantRange(t, f, im, len(im.bytes)/8, 1)
	<-ending
	all.Wait()
}

// A rangelessForAll is a rangeless source that several share.
type rangelessForAll struct {
	*rangeless
	unasked atomic.Int64 // how often its place was wanted for nobody
}

func (s *rangelessForAll) For(who any) cache.Source { return rangelessFor{s.rangeless, who.(string)} }
func (s *rangelessForAll) Place() (host, user string) {
	s.unasked.Add(1)
	return "host", "nobody"
}

type rangelessFor struct {
	*rangeless
	who string
}

func (s rangelessFor) Place() (host, user string) { return "host", s.who }

// TestOnlyWholeAskedBy: what one answer for all takes is taken for who asked.
func TestOnlyWholeAskedBy(t *testing.T) {
	im := newImage(t, 37, 20, 50_000)
	src := &rangelessForAll{rangeless: newRangeless(im.blob)}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	wantAll(t, cache.For(f, "who"), im)
	if n := src.unasked.Load(); n != 0 {
		t.Errorf("%d times for nobody", n)
	}
}

// spoiled returns an image's blob with one unit wrong.
func spoiled(im *image, unit int) []byte {
	bad := bytes.Clone(im.blob)
	u := im.spec.Units[unit]
	for i := u.Off; i < u.Off+u.Len; i++ {
		bad[i] ^= 0x55
	}
	return bad
}

// TestOnlyWholeWrongBeside: wrong bytes fail nobody that waits for others, not even for those that were asked for with them.
func TestOnlyWholeWrongBeside(t *testing.T) {
	im := newImage(t, 38, 100, 50_000)
	for name, limit := range map[string]int64{"all fits": 0, "too large": 300 << 10} {
		t.Run(name, func(t *testing.T) {
			src := newRangeless(spoiled(im, 10))
			src.begin = make(chan struct{})
			c := open(t, t.TempDir(), cache.Options{Limit: limit})
			defer closeAndCheck(t, c)
			f := create(t, c, "a", im, src)
			var all sync.WaitGroup
			for i, unit := range []uint32{10, 50, 90, 11, 51, 9} {
				e := im.spec.Extents[unit-1] // of that unit
				all.Go(func() {
					_, err := f.ReadAt(t.Context(), make([]byte, e.Len), e.Off)
					if (err != nil) != (unit == 10) {
						t.Errorf("unit %d: %v", unit, err)
					}
				})
				src.asked(min(int64(i)+1, 3)) // the others join what reads ahead, but for the last
			}
			all.Go(func() {
				if err := f.PrefetchAll(t.Context()); err == nil {
					t.Error("all of it came")
				}
			})
			close(src.begin)
			all.Wait()
			for u := range uint32(len(im.spec.Units)) {
				if n := f.UnitBytes(u); limit == 0 && n > 0 && f.Wants(u) != (u == 10) {
					t.Errorf("unit %d is wanted: %v", u, f.Wants(u))
				}
			}
			if n := src.wholes.Load(); n > 10 {
				t.Errorf("all of it was asked for %d times", n)
			}
		})
	}
}

// TestOnlyWholeTries: after wrong bytes, another place is asked.
func TestOnlyWholeTries(t *testing.T) {
	im := newImage(t, 40, 20, 50_000)
	src := newRangeless(im.blob)
	src.tries = [][]byte{spoiled(im, 10), spoiled(im, 10)}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	wantAll(t, f, im)
	if n := src.wholes.Load(); n != 3 {
		t.Errorf("all of it was asked for %d times", n)
	}
}

// TestOnlyWholeWrong: bytes that are wrong fail those that ask for them, after as many tries as by ranges, and no others.
func TestOnlyWholeWrong(t *testing.T) {
	im := newImage(t, 34, 20, 50_000)
	src := newRangeless(spoiled(im, 10))
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	for i := range im.spec.Extents {
		e := &im.spec.Extents[i]
		if e.Unit != 10 {
			wantRange(t, f, im, int(e.Off), int(e.Len))
			continue
		}
		if _, err := f.ReadAt(t.Context(), make([]byte, e.Len), e.Off); err == nil {
			t.Error("wrong bytes were read")
		}
	}
	if n := src.doubted.Load(); n == 0 {
		t.Error("its table is not doubted")
	}
	src.blob = im.blob
	wantAll(t, f, im)
}
