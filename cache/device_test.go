package cache_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/conformance/suite"
)

// TestDevice: an image whose extents come from a source as they are read is a device like any other.
func TestDevice(t *testing.T) {
	suite.Device(t, func(t *testing.T, size int64) blockdev.Device {
		const extent = 64 << 10
		zeros := make([]byte, extent)
		var packed bytes.Buffer
		zw := gzip.NewWriter(&packed)
		if _, err := zw.Write(zeros); err != nil {
			t.Fatal(err)
		}
		if err := zw.Close(); err != nil {
			t.Fatal(err)
		}
		im := &image{spec: cache.Spec{Codec: blob.Gzip, ImageSize: size, MetaSize: extent, Meta: meta(zeros)}}
		for off := int64(extent); off < size; off += extent {
			unit := uint32(len(im.spec.Units))
			im.spec.Units = append(im.spec.Units, blob.Unit{Off: int64(len(im.blob)), Len: int64(packed.Len())})
			im.spec.Extents = append(im.spec.Extents, cache.Extent{Off: off, Len: extent, Unit: unit, Digest: sha256.Sum256(zeros)})
			im.blob = append(im.blob, packed.Bytes()...)
		}
		c := open(t, t.TempDir(), cache.Options{})
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		return create(t, c, "image", im, &source{blob: im.blob})
	})
}
