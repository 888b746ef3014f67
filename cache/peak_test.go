package cache_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/cache/inflate"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/internal/memorytest"
)

// behindOne returns an image of one extent of one byte, and behind it in its only unit noise and zeros.
func behindOne(t *testing.T, codec blob.Codec, first byte, noise []byte, zeros int) *image {
	t.Helper()
	var packed bytes.Buffer
	var w io.WriteCloser
	switch codec {
	case blob.Zstd:
		zw, err := zstd.NewWriter(&packed, zstd.WithWindowSize(32<<20), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		w = zw
	default:
		w, _ = gzip.NewWriterLevel(&packed, gzip.BestSpeed) // a level that there is
	}
	plain := append([]byte{first}, noise...)
	plain = append(plain, make([]byte, zeros)...)
	_, err := w.Write(plain)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	im := &image{blob: packed.Bytes(), bytes: append(make([]byte, 4096), plain[0]), diffID: digest.FromBytes(plain)}
	im.spec = cache.Spec{ImageSize: 4097, MetaSize: 4096, Meta: meta(im.bytes[:4096]), Codec: codec,
		Units:   []blob.Unit{{Len: int64(packed.Len())}},
		Extents: []cache.Extent{{Off: 4096, Len: 1, Digest: sha256.Sum256(plain[:1])}}}
	if codec == blob.Spans {
		im.spec.Points, im.spec.PlainSize = []inflate.Point{{}}, int64(len(plain))
	}
	return im
}

// placedSource is a source of some host.
type placedSource struct {
	source
	host string
}

func (s *placedSource) Place() (host, user string) { return s.host, "" }

// TestDecodingIsBounded: units that hold little of use and much behind it are decoded within the memory that decoding may take,
// however many of them are read together, or streamed to check their diffIDs. All that is read arrives.
func TestDecodingIsBounded(t *testing.T) {
	const limit, images = 128 << 20, 16
	for name, c := range map[string]struct {
		codec        blob.Codec
		noise, zeros int // bytes behind the extent
	}{
		"zstd":        {blob.Zstd, 0, 15 << 20},
		"zstd, large": {blob.Zstd, 5 << 20, 10 << 20},
		"gzip":        {blob.Gzip, 0, 15 << 20},
		"gzip, large": {blob.Gzip, 5 << 20, 10 << 20},
		"spans":       {blob.Spans, 0, 60 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			noise := make([]byte, c.noise)
			for i := range noise {
				noise[i] = byte(rand.Uint32())
			}
			var all []*image
			for i := range images {
				all = append(all, behindOne(t, c.codec, byte(i), noise, c.zeros))
			}
			// Garbage is memory, too, and goes late on a busy machine. What is behind an extent is kept packed, if it is kept.
			most := heap.Cost{Memory: limit + limit/2, CPU: 2 * time.Minute, Written: int64(images * (64<<10 + len(all[0].blob)))}
			for how, read := range map[string]func(f *cache.File, im *image){
				"read": func(f *cache.File, im *image) { wantRange(t, f, im, 4096, 1) },
				"streamed": func(f *cache.File, im *image) {
					if err := f.Verify(t.Context(), im.diffID); err != nil {
						t.Error(err)
					}
				},
			} {
				dir := open(t, t.TempDir(), cache.Options{Memory: memory.New(limit)})
				var files []*cache.File
				for i, im := range all {
					files = append(files, create(t, dir, fmt.Sprint(i), im, &placedSource{source{blob: im.blob}, fmt.Sprint(i % 8)}))
				}
				took := most.Peaks(t, func() int64 {
					var reads sync.WaitGroup
					for i, f := range files {
						reads.Go(func() { read(f, all[i]) })
					}
					reads.Wait()
					return 0
				})
				t.Logf("%d units of %d packed bytes, %s: %+v, where decoding may take %d MiB", images, len(all[0].blob), how, took, limit>>20)
			}
		})
	}
}

// TestLaterFrame: a unit of which a later frame needs a larger window than the first is read, and verified.
func TestLaterFrame(t *testing.T) {
	var packed bytes.Buffer
	var plain []byte
	for _, window := range []int{64 << 10, 16 << 20} {
		w, err := zstd.NewWriter(&packed, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		p := bytes.Repeat([]byte{byte(window >> 16)}, 1<<20)
		for range 18 {
			if _, err := w.Write(p); err != nil {
				t.Fatal(err)
			}
			plain = append(plain, p...)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	im := &image{blob: packed.Bytes(), bytes: append(make([]byte, 4096), plain...)}
	im.spec = cache.Spec{ImageSize: int64(len(im.bytes)), MetaSize: 4096, Meta: meta(im.bytes[:4096]), Codec: blob.Zstd,
		Units:   []blob.Unit{{Len: int64(packed.Len())}},
		Extents: []cache.Extent{{Off: 4096, Len: uint32(len(plain)), Digest: sha256.Sum256(plain)}}}
	m := memory.New(128 << 20)
	f := create(t, open(t, t.TempDir(), cache.Options{Memory: m}), "one", im, &source{blob: im.blob})
	wantAll(t, f, im)
	again := create(t, open(t, t.TempDir(), cache.Options{Memory: m}), "one", im, &source{blob: im.blob})
	if err := again.Verify(t.Context(), digest.FromBytes(plain)); err != nil {
		t.Error(err)
	}
	giveBack, err := memorytest.Spend(t.Context(), m)
	if err != nil {
		t.Errorf("memory was not given back: %v", err)
	}
	giveBack()
}
