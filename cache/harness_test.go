package cache_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

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
	var buf bytes.Buffer
	zw, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed) // one for all members: it takes a megabyte
	if err != nil {
		t.Fatal(err)
	}
	member := func(parts ...[]byte) {
		off := len(im.blob)
		buf.Reset()
		zw.Reset(&buf)
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
		for k := 0; k < len(p); k += 16 {
			for i, bits := k, r.Uint64(); i < min(k+16, len(p)); i, bits = i+1, bits>>4 {
				p[i] = byte(bits % 16)
			}
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
