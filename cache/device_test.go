package cache_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"io"
	"testing"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/conformance/suite"
)

// TestDevice: an image whose extents come from a source as they are read is a device like any other.
func TestDevice(t *testing.T) {
	layer := func(t *testing.T, size int64, fault func(context.Context) error) blockdev.Device {
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
		src := &source{blob: im.blob}
		src.fault = func(ctx context.Context, _, _ int64, _ int) (io.ReadCloser, error) { return nil, fault(ctx) }
		return create(t, c, "image", im, src)
	}
	suite.Device(t, suite.Implementation{
		New: func(t *testing.T, size int64) blockdev.Device {
			return layer(t, size, func(context.Context) error { return nil })
		},
		Held: func(t *testing.T, size int64) suite.Held {
			come := make(chan struct{})
			d := layer(t, size, func(ctx context.Context) error {
				select {
				case <-come:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			return suite.Held{Device: d, Ops: []blockdev.Op{blockdev.OpRead}, Let: func() { close(come) }}
		},
	})
}
