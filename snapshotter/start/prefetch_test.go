package start

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// TestPrefetchIsBounded: of what a profile or the layers' author wants, so many units are fetched first as fill a quarter of the cache, by
// the bytes that come out of them. One that is listed often counts once.
func TestPrefetchIsBounded(t *testing.T) {
	const units, each = 16, 64 << 10 // bytes of a unit that 100 packed ones hold
	for limit, want := range map[int64]int{0: units, 4 * units * each: units, 4 * 3 * each: 3, 1: 0} {
		c, err := cache.Open(t.TempDir(), cache.Options{Log: imagetest.LogOf(t)})
		if err != nil {
			t.Fatal(err)
		}
		spec := cache.Spec{ImageSize: 4096 + units*each, MetaSize: 4096, Meta: bytes.NewReader(make([]byte, 4096)), Codec: blob.Gzip}
		for i := range int64(units) {
			spec.Units = append(spec.Units, blob.Unit{Off: i * 100, Len: 100})
			spec.Extents = append(spec.Extents, cache.Extent{Off: 4096 + i*each, Len: each, Unit: uint32(i), Digest: sha256.Sum256([]byte{byte(i)})})
		}
		f, err := c.Create("one", spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		var list []cache.Piece
		for u := range uint32(units) {
			list = append(list, cache.Piece{File: f, Unit: u}, cache.Piece{File: f, Unit: u})
		}
		if got := len(bound(list, limit)); got != 2*want {
			t.Errorf("of %d pieces of %d bytes, %d are fetched where the cache has %d bytes, want %d", len(list), each, got, limit, 2*want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
