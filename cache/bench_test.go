package cache_test

import (
	"testing"

	"github.com/remora-storage/remora/cache"
)

// BenchmarkPresent: what it costs to read bytes that are here, beside reading the file itself.
func BenchmarkPresent(b *testing.B) {
	im := newImage(b, 1, 500, 20_000)
	f := create(b, open(b, b.TempDir(), cache.Options{}), "a", im, &source{blob: im.blob})
	wantAll(b, f, im)
	p := make([]byte, 4096)
	off := func(i int) int64 { return int64(i) * 4096 % (im.spec.ImageSize - 4096) }
	for _, way := range []struct {
		name string
		read func(off int64) error
	}{
		{"file", func(off int64) error { _, err := f.Image().ReadAt(p, off); return err }},
		{"ReadAt", func(off int64) error { _, err := f.ReadAt(b.Context(), p, off); return err }},
		{"Peek", func(off int64) error { _, err := f.Peek(p, off); return err }},
		{"Fill", func(off int64) error { return f.Fill(b.Context(), off, 4096) }},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := way.read(off(i)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMissing: what it costs to fetch an image from memory, by readers one after another and by a prefetch.
func BenchmarkMissing(b *testing.B) {
	im := newImage(b, 1, 500, 20_000)
	c := open(b, b.TempDir(), cache.Options{})
	for _, way := range []struct {
		name string
		get  func(f *cache.File) error
	}{
		{"ReadAt", func(f *cache.File) error {
			for off := int64(0); off < im.spec.ImageSize; off += 16 << 10 {
				if _, err := f.ReadAt(b.Context(), make([]byte, 16<<10), off); err != nil {
					return err
				}
			}
			return nil
		}},
		{"PrefetchAll", func(f *cache.File) error { return f.PrefetchAll(b.Context()) }},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.SetBytes(int64(len(im.blob)))
			b.ReportAllocs()
			for b.Loop() {
				f := create(b, c, "a", im, &source{blob: im.blob})
				if err := way.get(f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
