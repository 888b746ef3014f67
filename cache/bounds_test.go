package cache_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/conformance/heap"
)

// TestBehindExtents: what a unit has behind its last extent costs a reader next to nothing, however much it is.
func TestBehindExtents(t *testing.T) {
	const behind = 500 << 20
	data := []byte("what a file has")
	var gz, zs bytes.Buffer
	gw := gzip.NewWriter(&gz)
	zw, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{gw, zw} {
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		zeros := make([]byte, 1<<20)
		for range behind >> 20 {
			if _, err := w.Write(zeros); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		codec  blob.Codec
		packed []byte
	}{"gzip": {blob.Gzip, gz.Bytes()}, "zstd": {blob.Zstd, zs.Bytes()}} {
		t.Run(name, func(t *testing.T) {
			im := &image{blob: c.packed, bytes: append(make([]byte, 4096), data...)}
			im.spec = cache.Spec{ImageSize: 4096 + int64(len(data)), MetaSize: 4096, Meta: meta(im.bytes[:4096]), Codec: c.codec,
				Units:   []blob.Unit{{Len: int64(len(c.packed))}},
				Extents: []cache.Extent{{Off: 4096, Len: uint32(len(data)), Digest: sha256.Sum256(data)}}}
			f := create(t, open(t, t.TempDir(), cache.Options{}), "one", im, &source{blob: im.blob})
			most := heap.Cost{Memory: 150 << 20, CPU: 20 * time.Second, Written: 64 << 10}
			took := most.Allocates(t, func() int64 { wantRange(t, f, im, 4096, 1); return 0 })
			t.Logf("%d bytes packed: %+v", len(c.packed), took)
		})
	}
}

// TestPlainIsBounded: what is decoded to check a diffID has a total, wherever it lies in the units.
func TestPlainIsBounded(t *testing.T) {
	const units, behind = 4, 20 << 20 // more than is kept
	data := []byte("what a file has")
	var packed bytes.Buffer
	gw := gzip.NewWriter(&packed)
	if _, err := gw.Write(append(bytes.Clone(data), make([]byte, behind)...)); err != nil {
		t.Fatal(err)
	}
	if err := gw.Close(); err != nil {
		t.Fatal(err)
	}
	n := int64(packed.Len())
	im := &image{blob: bytes.Repeat(packed.Bytes(), units), bytes: append(make([]byte, 4096), bytes.Repeat(data, units)...)}
	im.spec = cache.Spec{ImageSize: int64(len(im.bytes)), MetaSize: 4096, Meta: meta(im.bytes[:4096]), Codec: blob.Gzip}
	for i := range int64(units) {
		im.spec.Units = append(im.spec.Units, blob.Unit{Off: i * n, Len: n})
		im.spec.Extents = append(im.spec.Extents, cache.Extent{
			Off: 4096 + i*int64(len(data)), Unit: uint32(i), Len: uint32(len(data)), Digest: sha256.Sum256(data),
		})
	}
	plain := bytes.Repeat(append(bytes.Clone(data), make([]byte, behind)...), units)
	for _, most := range []int64{int64(len(plain)), int64(len(plain)) - 1, 30 << 20} {
		f := create(t, open(t, t.TempDir(), cache.Options{Plain: most}), "one", im, &source{blob: im.blob})
		var err error
		cost := heap.Cost{Memory: 256 << 20, CPU: 2 * time.Minute, Written: int64(len(data)*units) + 64<<10}
		cost.Peaks(t, func() int64 { err = f.Verify(t.Context(), digest.FromBytes(plain)); return 0 })
		if fits := most >= int64(len(plain)); fits && err != nil || !fits && !errors.Is(err, cache.ErrTooLarge) {
			t.Errorf("%d bytes where %d are allowed: got %v", len(plain), most, err)
		}
	}
}

// TestSharedExtents: two files may have the same bytes of a unit, and the whole is verified as any other.
func TestSharedExtents(t *testing.T) {
	im := newImage(t, 1, 3, 5000)
	again := im.spec.Extents[1]
	data := im.bytes[again.Off : again.Off+int64(again.Len)]
	again.Off = int64(len(im.bytes))
	im.bytes = append(im.bytes, data...)
	im.spec.ImageSize = int64(len(im.bytes))
	im.spec.Extents = append(im.spec.Extents, again)
	f := create(t, open(t, t.TempDir(), cache.Options{}), "one", im, &source{blob: im.blob})
	wantAll(t, f, im)
	if err := f.Verify(t.Context(), digest.FromBytes(im.diff)); err != nil {
		t.Error(err)
	}
}
