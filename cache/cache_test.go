package cache_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
)

// image is an image in memory and the blob that it comes from.
type image struct {
	spec   cache.Spec
	bytes  []byte // what reading must give
	blob   []byte
	diffID digest.Digest
	diff   []byte
}

type meta []byte

func (m meta) WriteTo(w io.Writer) (int64, error) { n, err := w.Write(m); return int64(n), err }

// newImage makes an image of n extents of up to size bytes, each in a gzip member of its own
// with bytes around it that belong to no extent.
func newImage(t testing.TB, seed uint64, n, size int) *image {
	t.Helper()
	return newImageWith(t, seed, n, size, "tail and the next header")
}

func newImageWith(t testing.TB, seed uint64, n, size int, tail string) *image {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	im := &image{bytes: make([]byte, 4096)}
	for i := range im.bytes {
		im.bytes[i] = byte(seed)
	}
	im.spec.Codec, im.spec.MetaSize, im.spec.Meta = blob.Gzip, 4096, meta(bytes.Clone(im.bytes))
	member := func(parts ...[]byte) {
		off := len(im.blob)
		var buf bytes.Buffer
		zw := gzip.NewWriter(&buf)
		for _, p := range parts {
			if _, err := zw.Write(p); err != nil {
				t.Fatal(err)
			}
			im.diff = append(im.diff, p...)
		}
		if err := zw.Close(); err != nil {
			t.Fatal(err)
		}
		im.blob = append(im.blob, buf.Bytes()...)
		im.spec.Units = append(im.spec.Units, blob.Unit{Off: int64(off), Len: int64(buf.Len())})
	}
	member([]byte("headers before everything"))
	for i := range n {
		p := make([]byte, 1+r.IntN(size))
		for k := range p {
			p[k] = byte(r.Uint32() % 16)
		}
		head := bytes.Repeat([]byte{'h'}, r.IntN(50))
		im.spec.Extents = append(im.spec.Extents, cache.Extent{
			Off: int64(len(im.bytes)), Len: uint32(len(p)), Unit: uint32(i + 1), Inner: uint32(len(head)), Digest: sha256.Sum256(p),
		})
		member(head, p, []byte(tail))
		im.bytes = append(im.bytes, p...)
		im.bytes = append(im.bytes, make([]byte, (4096-len(im.bytes)%4096)%4096)...)
	}
	member([]byte("the end"))
	im.spec.ImageSize = int64(len(im.bytes))
	im.diffID = digest.FromBytes(im.diff)
	return im
}

// source serves a blob and counts; fault may change what it gives.
type source struct {
	blob  []byte
	opens atomic.Int64
	bytes atomic.Int64
	fault func(ctx context.Context, off, n int64, try int) (io.ReadCloser, error)
}

func (s *source) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	s.opens.Add(1)
	if s.fault != nil {
		if r, err := s.fault(ctx, off, n, try); r != nil || err != nil {
			return r, err
		}
	}
	s.bytes.Add(n)
	return io.NopCloser(bytes.NewReader(s.blob[off : off+n])), nil
}

// open opens a cache. When its test has ended, what is on disk is checked as another life finds it.
func open(t testing.TB, dir string, opts cache.Options) *cache.Cache {
	t.Helper()
	c := openUnchecked(t, dir, opts)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("at the end: %v", err)
		}
		if err := checkDir(dir); err != nil {
			t.Errorf("at the end: %v", err)
		}
	})
	return c
}

// openUnchecked opens a cache whose files the test has damaged.
func openUnchecked(t testing.TB, dir string, opts cache.Options) *cache.Cache {
	t.Helper()
	c, err := cache.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkDir opens every image of a cache that nobody uses, without a source, and walks over all that it holds.
func checkDir(dir string) error {
	c, err := cache.Open(dir, cache.Options{})
	if err != nil {
		return err
	}
	ids, err := c.IDs()
	errs := []error{err}
	for _, id := range ids {
		_, err := c.File(id, nil)
		errs = append(errs, err)
	}
	errs = append(errs, c.Check(), c.Close())
	return errors.Join(errs...)
}

func create(t testing.TB, c *cache.Cache, id string, im *image, src cache.Source) *cache.File {
	t.Helper()
	spec := im.spec
	spec.Extents = append([]cache.Extent(nil), im.spec.Extents...)
	f, err := c.Create(id, spec, src)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func wantAll(t testing.TB, f *cache.File, im *image) {
	t.Helper()
	wantRange(t, f, im, 0, len(im.bytes))
}

func wantRange(t testing.TB, f *cache.File, im *image, off, n int) {
	t.Helper()
	p := make([]byte, n)
	k, err := f.ReadAt(t.Context(), p, int64(off))
	if err != nil || k != n {
		t.Fatalf("read %d+%d: %d bytes, %v", off, n, k, err)
	}
	if !bytes.Equal(p, im.bytes[off:off+n]) {
		t.Fatalf("read %d+%d: wrong bytes", off, n)
	}
}

func closeAndCheck(t testing.TB, c *cache.Cache) {
	t.Helper()
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestReadsAnywhere(t *testing.T) {
	im := newImage(t, 1, 200, 9000)
	src := &source{blob: im.blob}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	r := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		off := r.IntN(len(im.bytes))
		wantRange(t, f, im, off, r.IntN(min(50_000, len(im.bytes)-off)+1))
	}
	wantAll(t, f, im)
	before := src.bytes.Load()
	wantAll(t, f, im)
	if src.bytes.Load() != before {
		t.Error("what is present was fetched again")
	}
	if n, err := f.ReadAt(t.Context(), make([]byte, 100), int64(len(im.bytes))-10); n != 10 || err != nil {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if err := f.Verify(t.Context(), im.diffID); err != nil {
		t.Error(err)
	}
}

// TestSurvivesRestart: what was recorded is neither fetched nor checked again.
func TestSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	im := newImage(t, 2, 100, 20_000)
	src := &source{blob: im.blob}
	c := open(t, dir, cache.Options{})
	f := create(t, c, "a", im, src)
	wantRange(t, f, im, 0, len(im.bytes)/2)
	closeAndCheck(t, c)
	fetched := src.bytes.Load()

	c = open(t, dir, cache.Options{})
	f, err := c.File("a", nil) // no source: half of it must be here
	if err != nil {
		t.Fatal(err)
	}
	wantRange(t, f, im, 0, len(im.bytes)/2)
	f.SetSource(src)
	wantAll(t, f, im)
	if got := src.bytes.Load(); got > int64(len(im.blob))+fetched/2 {
		t.Errorf("fetched %d bytes of a blob of %d: recorded extents were fetched again", got, len(im.blob))
	}
	if err := f.Verify(t.Context(), im.diffID); err != nil {
		t.Error(err)
	}
	closeAndCheck(t, c)
	c = open(t, dir, cache.Options{})
	if f, err = c.File("a", nil); err != nil || !f.Complete() || !f.Known() {
		t.Errorf("complete %v, verified %v, %v", f.Complete(), f.Known(), err)
	}
	closeAndCheck(t, c)
}

// TestRecordIsCutAnywhere cuts and garbles the presence record at every byte: whatever it then
// says is present must have the right bytes.
func TestRecordIsCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	im := newImage(t, 3, 12, 9000)
	c := open(t, dir, cache.Options{})
	f := create(t, c, "a", im, &source{blob: im.blob})
	for i := range 12 { // one commit each, so that there are several entries
		wantRange(t, f, im, int(im.spec.Extents[i].Off), 1)
		if err := c.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	closeAndCheck(t, c)
	path := filepath.Join(dir, "a", "present")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		for _, garble := range []bool{false, true} {
			p := bytes.Clone(whole[:n])
			if garble {
				p = bytes.Clone(whole)
				p[n] ^= 0x41
			}
			if err := os.WriteFile(path, p, 0o600); err != nil {
				t.Fatal(err)
			}
			c := openUnchecked(t, dir, cache.Options{})
			f, err := c.File("a", &source{blob: im.blob})
			if err == nil {
				wantAll(t, f, im)
			} else if !errors.Is(err, cache.ErrCorrupt) {
				t.Fatalf("cut at %d: %v", n, err)
			}
			f = nil
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReadersShareAFetch(t *testing.T) {
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
	time.Sleep(50 * time.Millisecond) // lets them gather; the test holds without
	close(gate)
	all.Wait()
	if n := src.opens.Load(); n != 1 {
		t.Errorf("%d fetches for one extent", n)
	}
}

// TestReaderLeaves: a reader whose context ends leaves at once, and the fetch ends with the last.
func TestReaderLeaves(t *testing.T) {
	im := newImage(t, 5, 1, 1000)
	ended := make(chan error, 1)
	src := &source{blob: im.blob}
	src.fault = func(ctx context.Context, _, _ int64, _ int) (io.ReadCloser, error) {
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
	time.Sleep(20 * time.Millisecond)
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

// TestSameDigestIsCopied: an extent that another layer has is not fetched.
func TestSameDigestIsCopied(t *testing.T) {
	im := newImage(t, 9, 50, 5000)
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	wantAll(t, create(t, c, "old", im, &source{blob: im.blob}), im)
	src := &source{blob: im.blob}
	f := create(t, c, "new", im, src)
	wantAll(t, f, im)
	if n := src.bytes.Load(); n != 0 {
		t.Errorf("fetched %d bytes that another layer had", n)
	}
}

// TestRebuiltLayer: of a layer that is like another but for a few extents, only those are fetched to
// make it complete and to check its diffID, with what lies around them. One whose headers differ
// where nobody can see it is found out by its diffID, and fetched.
func TestRebuiltLayer(t *testing.T) {
	old := newImage(t, 4, 60, 5000)
	same := newImage(t, 4, 60, 5000)
	headers := newImageWith(t, 4, 60, 5000, "tail and the NEXT header")
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	wantAll(t, create(t, c, "old", old, &source{blob: old.blob}), old)
	for name, one := range map[string]struct {
		im  *image
		all bool
	}{"the same": {same, false}, "other headers": {headers, true}} {
		t.Run(name, func(t *testing.T) {
			src := &source{blob: one.im.blob}
			f := create(t, c, name, one.im, src)
			if err := f.PrefetchAll(t.Context()); err != nil {
				t.Fatal(err)
			}
			var both sync.WaitGroup
			for range 2 { // at once: one must not be misled by what the other drops
				both.Go(func() {
					if err := f.Verify(t.Context(), one.im.diffID); err != nil {
						t.Error(err)
					}
				})
			}
			both.Wait()
			if n := src.bytes.Load(); (n > int64(len(one.im.blob))/4) != one.all {
				t.Errorf("fetched %d of %d bytes", n, len(one.im.blob))
			}
			wantAll(t, f, one.im)
		})
	}
}

// TestTwinIsOfTheEarlierBuild: another layer begins with the same files, under other headers, and comes
// first by name; a rebuilt layer resembles its earlier build all the same.
func TestTwinIsOfTheEarlierBuild(t *testing.T) {
	other := newImageWith(t, 4, 10, 5000, "tail and the header of another layer")
	old, rebuilt := newImage(t, 4, 60, 5000), newImage(t, 4, 60, 5000)
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	wantAll(t, create(t, c, "a", other, &source{blob: other.blob}), other)
	wantAll(t, create(t, c, "b", old, &source{blob: old.blob}), old)
	src := &source{blob: rebuilt.blob}
	f := create(t, c, "c", rebuilt, src)
	if err := f.PrefetchAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(t.Context(), rebuilt.diffID); err != nil {
		t.Fatal(err)
	}
	if n := src.bytes.Load(); n > int64(len(rebuilt.blob))/4 {
		t.Errorf("fetched %d of %d bytes", n, len(rebuilt.blob))
	}
}

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

// TestBudget: the limit is never exceeded, under concurrent readers of more than fits, and
// every byte is right all the same.
func TestBudget(t *testing.T) {
	const limit = 600_000
	c := open(t, t.TempDir(), cache.Options{Limit: limit})
	defer closeAndCheck(t, c)
	var images []*image
	var files []*cache.File
	for i := range 3 {
		im := newImage(t, uint64(20+i), 100, 8000)
		images = append(images, im)
		files = append(files, create(t, c, string(rune('a'+i)), im, &source{blob: im.blob}))
	}
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 200 {
				k := r.IntN(3)
				off := r.IntN(len(images[k].bytes))
				wantRange(t, files[k], images[k], off, r.IntN(min(20_000, len(images[k].bytes)-off)+1))
				if used, _ := c.Usage(); used > limit {
					t.Errorf("%d bytes used of %d", used, limit)
					return
				}
			}
		})
	}
	all.Wait()
	for i, f := range files {
		if err := c.Commit(); err != nil {
			t.Fatal(err)
		}
		wantAll(t, f, images[i])
		if err := c.Remove(string(rune('a' + i))); err != nil {
			t.Fatal(err)
		}
	}
	if used, _ := c.Usage(); used != 0 {
		t.Errorf("%d bytes are accounted for in an empty cache", used)
	}
}

// TestPinned: a pinned file keeps its extents however much others need.
func TestPinned(t *testing.T) {
	a, b := newImage(t, 30, 20, 8000), newImage(t, 31, 100, 8000)
	c := open(t, t.TempDir(), cache.Options{Limit: 300_000})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", a, &source{blob: a.blob})
	wantAll(t, f, a)
	if !f.PinIfComplete() {
		t.Fatal("not complete")
	}
	g := create(t, c, "b", b, &source{blob: b.blob})
	wantAll(t, g, b)
	if !f.Complete() {
		t.Error("extents of a pinned file were evicted")
	}
	got, err := os.ReadFile(f.Path()) // as the kernel would
	if err != nil || !bytes.Equal(got, a.bytes) {
		t.Errorf("image file is not the image: %v", err)
	}
	f.Unpin()
}

func TestPrefetchAndReaders(t *testing.T) {
	im := newImage(t, 40, 300, 20_000)
	src := &source{blob: im.blob}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	var all sync.WaitGroup
	all.Go(func() {
		if err := f.PrefetchAll(t.Context()); err != nil {
			t.Error(err)
		}
	})
	for w := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 2))
			for range 100 {
				off := r.IntN(len(im.bytes))
				wantRange(t, f, im, off, r.IntN(min(9000, len(im.bytes)-off)+1))
			}
		})
	}
	all.Wait()
	if !f.Complete() {
		t.Error("prefetched all, yet not complete")
	}
	if n := src.bytes.Load(); n > int64(len(im.blob)) {
		t.Errorf("fetched %d bytes of a blob of %d", n, len(im.blob))
	}
}

func TestStream(t *testing.T) {
	im := newImage(t, 41, 100, 9000)
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, &source{blob: im.blob})
	wantRange(t, f, im, 5000, 50_000)
	var packed bytes.Buffer
	if err := f.Stream(t.Context(), im.diffID, &packed, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(packed.Bytes(), im.blob) || !f.Complete() || !f.Known() {
		t.Errorf("blob equal %v, complete %v, verified %v", bytes.Equal(packed.Bytes(), im.blob), f.Complete(), f.Known())
	}
	g := create(t, c, "b", im, &source{blob: im.blob})
	if err := g.Stream(t.Context(), digest.FromString("another"), io.Discard, nil); !errors.Is(err, cache.ErrDiffID) {
		t.Errorf("another diffID: %v", err)
	}
}

func TestRemovedWhileRead(t *testing.T) {
	im := newImage(t, 42, 200, 9000)
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	for range 20 {
		f := create(t, c, "a", im, &source{blob: im.blob})
		var all sync.WaitGroup
		for w := range 4 {
			all.Go(func() {
				r := rand.New(rand.NewPCG(uint64(w), 3))
				p := make([]byte, 9000)
				for range 30 {
					off := r.IntN(len(im.bytes) - len(p))
					n, err := f.ReadAt(t.Context(), p, int64(off))
					if err == nil && !bytes.Equal(p[:n], im.bytes[off:off+n]) {
						t.Error("wrong bytes")
					}
				}
			})
		}
		if err := c.Remove("a"); err != nil {
			t.Error(err)
		}
		all.Wait()
	}
	if used, _ := c.Usage(); used != 0 {
		t.Errorf("%d bytes are accounted for in an empty cache", used)
	}
}

// TestRecordIsCompacted: a record that evictions have made long says the same when it is short.
func TestRecordIsCompacted(t *testing.T) {
	dir := t.TempDir()
	im := newImage(t, 50, 20, 9000)
	src := &source{blob: im.blob}
	c := open(t, dir, cache.Options{Limit: 80_000})
	f := create(t, c, "a", im, src)
	path := filepath.Join(dir, "a", "present")
	size := func() int64 {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	for range 400 {
		wantAll(t, f, im)
		if err := c.Commit(); err != nil {
			t.Fatal(err)
		}
		if size() > 20_000 {
			break
		}
	}
	before := size()
	closeAndCheck(t, c)
	if before <= 20_000 {
		t.Fatalf("the record has only %d bytes", before)
	}
	for range 2 { // the second time it is short already
		c = open(t, dir, cache.Options{Limit: 80_000})
		f, err := c.File("a", src)
		if err != nil {
			t.Fatal(err)
		}
		if n := size(); n > 1000 {
			t.Errorf("%d bytes after, %d before", n, before)
		}
		if err := c.Check(); err != nil {
			t.Error(err)
		}
		wantRange(t, f, im, 0, 5000)
		closeAndCheck(t, c)
	}
}

// TestPrefetchJoinsAnAbandonedFetch: a prefetch that waits for a reader's fetch fetches itself when
// the readers leave.
func TestPrefetchJoinsAnAbandonedFetch(t *testing.T) {
	im := newImage(t, 51, 4, 1000)
	src := &source{blob: im.blob}
	asked := make(chan struct{}, 10)
	src.fault = func(ctx context.Context, _, _ int64, _ int) (io.ReadCloser, error) {
		if src.opens.Load() > 1 {
			return nil, nil
		}
		asked <- struct{}{}
		<-ctx.Done()
		time.Sleep(50 * time.Millisecond) // the prefetch, told of the end, finds the fetch still there
		return nil, context.Cause(ctx)
	}
	c := open(t, t.TempDir(), cache.Options{})
	defer closeAndCheck(t, c)
	f := create(t, c, "a", im, src)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := f.ReadAt(ctx, make([]byte, 10), 4096)
		left <- err
	}()
	<-asked
	leave()
	<-left
	if err := f.PrefetchAll(t.Context()); err != nil || !f.Complete() {
		t.Errorf("complete %v, %v", f.Complete(), err)
	}
}
