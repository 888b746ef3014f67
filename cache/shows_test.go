package cache_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
)

// shows has a source show that it has what a sample is of, and returns where it was asked.
func shows(t *testing.T, c *cache.Cache, s *cache.Sample, src *source) (asked []int64, err error) {
	t.Helper()
	fault, mu := src.fault, sync.Mutex{}
	watched := &source{blob: src.blob, fault: func(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, off)
		if fault == nil {
			return nil, nil
		}
		return fault(ctx, off, n, try)
	}}
	err = c.Shows(t.Context(), watched, s)
	slices.Sort(asked)
	return asked, err
}

func sampleOf(t *testing.T, f *cache.File) *cache.Sample {
	t.Helper()
	s, err := f.Sample(f.ID())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestShows: a source shows that it has a blob by a few units of it, whether they are here or not; by the same ones each time, and nobody
// can tell by which.
func TestShows(t *testing.T) {
	im := newImage(t, 1, 200, 5000)
	draw := func() (first []int64) {
		c := open(t, t.TempDir(), cache.Options{})
		s := sampleOf(t, create(t, c, "layer", im, nil))
		for range 3 {
			asked, err := shows(t, c, s, &source{blob: im.blob})
			if err != nil || len(asked) != 4 || first != nil && !slices.Equal(asked, first) {
				t.Errorf("asked at %v, then at %v: %v", first, asked, err)
			}
			first = asked
			s = sampleOf(t, create(t, c, "layer", im, nil))
		}
		return first
	}
	if a, b := draw(), draw(); slices.Equal(a, b) {
		t.Errorf("two lives draw the same: %v", a)
	}
}

// TestShowsNothing: answers that are not the blob show nothing, though all that is right but one unit's.
func TestShowsNothing(t *testing.T) {
	im := newImage(t, 1, 200, 5000)
	c := open(t, t.TempDir(), cache.Options{})
	s := sampleOf(t, create(t, c, "layer", im, &source{blob: im.blob}))
	asked, err := shows(t, c, s, &source{blob: im.blob})
	if err != nil {
		t.Fatal(err)
	}
	away := errors.New("away")
	for name, fault := range map[string]struct {
		answer func(off, n int64) (io.ReadCloser, error)
		want   error
	}{
		"garbage": {func(_, n int64) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(make([]byte, n))), nil }, blob.ErrBytes},
		"another unit": {func(_, n int64) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(im.blob[:min(n, im.spec.Units[0].Len)]), bytes.NewReader(make([]byte, n)))), nil
		}, blob.ErrBytes},
		"one bit": {func(off, n int64) (io.ReadCloser, error) {
			p := bytes.Clone(im.blob[off : off+n])
			p[n/2] ^= 1
			return io.NopCloser(bytes.NewReader(p)), nil
		}, blob.ErrBytes},
		"too little": {func(off, n int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(im.blob[off : off+n/2])), nil
		}, io.ErrUnexpectedEOF},
		"nothing": {func(int64, int64) (io.ReadCloser, error) { return nil, away }, away},
	} {
		for _, at := range asked { // of the others it has the right bytes
			_, err := shows(t, c, s, &source{blob: im.blob, fault: func(_ context.Context, off, n int64, _ int) (io.ReadCloser, error) {
				if off != at {
					return nil, nil
				}
				return fault.answer(off, n)
			}})
			if !errors.Is(err, fault.want) {
				t.Errorf("%s at %d: got %v", name, at, err)
			}
		}
	}
}

// TestFewUnits: all that there is is compared where that is little; what is in no extent cannot be.
func TestFewUnits(t *testing.T) {
	c := open(t, t.TempDir(), cache.Options{})
	for n := range 4 {
		im := newImage(t, 2, n, 5000)
		s, err := create(t, c, fmt.Sprint(n), im, nil).Sample("layer")
		if n == 0 {
			if !errors.Is(err, cache.ErrNotByParts) {
				t.Errorf("of nothing: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		asked, err := shows(t, c, s, &source{blob: im.blob})
		if err != nil || len(asked) != n {
			t.Errorf("of %d units, asked at %v: %v", n, asked, err)
		}
	}
	_, err := c.Sample("layer", &cache.Content{Codec: blob.Whole, Units: 1, Unit: func(int) blob.Unit { return blob.Unit{Len: 10} }})
	if !errors.Is(err, cache.ErrNotByParts) {
		t.Errorf("of what cannot be read by parts: %v", err)
	}
}

// contentOf is a blob of a gzip member for each of some files, as the cache knows it.
func contentOf(t *testing.T, files ...[]byte) (packed []byte, c *cache.Content) {
	t.Helper()
	var units []blob.Unit
	for _, p := range files {
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		_, err := w.Write(p)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		units = append(units, blob.Unit{Off: int64(len(packed)), Len: int64(buf.Len())})
		packed = append(packed, buf.Bytes()...)
	}
	return packed, &cache.Content{
		Codec: blob.Gzip, Units: len(files),
		Unit:  func(u int) blob.Unit { return units[u] },
		Bytes: func(u int) int64 { return int64(len(files[u])) },
		Part: func(u int) (cache.Part, error) {
			return cache.Part{Unit: units[u], Extents: []cache.Extent{{Len: uint32(len(files[u])), Digest: sha256.Sum256(files[u])}}}, nil
		},
	}
}

// TestGuessedUnits: files of zeros, and such as a converter puts into each layer, show nothing, since anybody can serve them. Others of the
// layer do, if there are some among those that are looked at; else only all of it would.
func TestGuessedUnits(t *testing.T) {
	landmark, zeros, sparse := []byte{0xf}, make([]byte, 300_000), append(make([]byte, 300_000), 1)
	text := []byte("whoever has this file has seen it, and nobody else could tell")
	for name, files := range map[string]struct {
		guessed [][]byte
		secrets int
		byParts bool
	}{
		"a landmark":              {[][]byte{landmark}, 0, false},
		"a file of zeros":         {[][]byte{zeros, landmark}, 0, false},
		"little but zeros":        {[][]byte{sparse}, 0, false},
		"one of few":              {[][]byte{zeros, landmark, sparse, zeros}, 1, true},
		"as many as are wanted":   {[][]byte{zeros, landmark}, 4, true},
		"too few among very many": {slices.Repeat([][]byte{zeros}, 50), 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			all := slices.Concat(files.guessed, slices.Repeat([][]byte{text}, files.secrets))
			c := open(t, t.TempDir(), cache.Options{})
			packed, content := contentOf(t, all...)
			secret := int64(len(packed))
			if files.secrets > 0 {
				secret = content.Unit(len(files.guessed)).Off
			}
			s, err := c.Sample(name, content)
			if err == nil {
				_, err = shows(t, c, s, &source{blob: packed})
			}
			if files.byParts && err != nil || !files.byParts && !errors.Is(err, cache.ErrNotByParts) {
				t.Errorf("who has it: %v", err)
			}
			if s == nil {
				return
			}
			guessed := bytes.Clone(packed)
			clear(guessed[secret:])
			if _, err := shows(t, c, s, &source{blob: guessed}); !errors.Is(err, blob.ErrBytes) && !errors.Is(err, cache.ErrNotByParts) {
				t.Errorf("who has guessed: %v", err)
			}
		})
	}
}

// TestSampleHasBoth: those that have all small units of a blob, or its large one alone, have not the blob.
func TestSampleHasBoth(t *testing.T) {
	const small, large = 10_000, 1 << 40 // what is drawn by where it lies is the large one
	c := open(t, t.TempDir(), cache.Options{})
	unit := func(u int) blob.Unit {
		if u == small {
			return blob.Unit{Off: small * 100, Len: large}
		}
		return blob.Unit{Off: int64(u) * 100, Len: 100}
	}
	for i := range 100 {
		var drawn []int
		_, err := c.Sample(fmt.Sprint(i), &cache.Content{
			Codec: blob.Plain, Units: small + 1, Unit: unit, Bytes: func(int) int64 { return 100 },
			Part: func(u int) (cache.Part, error) { drawn = append(drawn, u); return cache.Part{Unit: unit(u)}, nil },
		})
		if err != nil || len(drawn) < 4 || !slices.Contains(drawn[:4], small) { // those that are asked for if they show something
			t.Fatalf("drew %v, %v", drawn, err)
		}
	}
}

// TestShowsLargeWindows: a unit of several zstd frames is compared though a later one needs a larger window than the first.
func TestShowsLargeWindows(t *testing.T) {
	plain := bytes.Repeat([]byte("some text, "), 300_000)
	w, err := zstd.NewWriter(nil, zstd.WithWindowSize(zstd.MinWindowSize))
	if err != nil {
		t.Fatal(err)
	}
	packed := w.EncodeAll([]byte("first"), nil)
	w, err = zstd.NewWriter(nil, zstd.WithWindowSize(4<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	packed = w.EncodeAll(plain, packed)
	c := open(t, t.TempDir(), cache.Options{})
	s, err := c.Sample("layer", &cache.Content{
		Codec: blob.Zstd, Units: 1, Unit: func(int) blob.Unit { return blob.Unit{Len: int64(len(packed))} },
		Bytes: func(int) int64 { return 100 },
		Part: func(int) (cache.Part, error) {
			return cache.Part{Unit: blob.Unit{Len: int64(len(packed))}, Extents: []cache.Extent{
				{Inner: 5, Len: uint32(len(plain)), Digest: sha256.Sum256(plain)}}}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shows(t, c, s, &source{blob: packed}); err != nil {
		t.Error(err)
	}
}
