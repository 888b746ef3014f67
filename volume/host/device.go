package host

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/volume"
)

// A Device is a volume of this node as a block device. Its requests wait while the volume is being opened. Close ends
// nothing: the Host keeps volumes.
type Device struct {
	o         *opened
	latencies *prometheus.HistogramVec
}

// took notes how long a request took, from when it was made.
func (d *Device) took(op string, begin time.Time) {
	d.latencies.WithLabelValues(op).Observe(time.Since(begin).Seconds())
}

// Size implements blockdev.Device.
func (d *Device) Size() int64 { return d.o.size() }

// BlockSize implements blockdev.Device.
func (d *Device) BlockSize() int { return volume.Block }

// Close implements disk.Device.
func (d *Device) Close() error { return nil }

// Leave implements disk.Leaver: giving a volume up is the Host's, which waits for its store.
func (d *Device) Leave(context.Context) error { return nil }

// Failed implements disk.Failer.
func (d *Device) Failed() error {
	select {
	case <-d.o.ready:
	default:
		return nil
	}
	if d.o.err != nil {
		return d.o.err
	}
	return d.o.v.Status().Failed
}

// ReadAt implements blockdev.Device.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	defer d.took("read", time.Now())
	if err := d.o.wait(ctx); err != nil {
		return 0, err
	}
	return d.o.v.ReadAt(ctx, p, off)
}

// WriteAt implements blockdev.Writer.
func (d *Device) WriteAt(ctx context.Context, p []byte, off int64) error {
	defer d.took("write", time.Now())
	if err := d.o.wait(ctx); err != nil {
		return err
	}
	return d.o.v.WriteAt(ctx, p, off)
}

// WriteSync implements blockdev.Syncer.
func (d *Device) WriteSync(ctx context.Context, p []byte, off int64) error {
	defer d.took("write_sync", time.Now())
	if err := d.o.wait(ctx); err != nil {
		return err
	}
	return d.o.v.WriteSync(ctx, p, off)
}

// Flush implements blockdev.Writer.
func (d *Device) Flush(ctx context.Context) error {
	defer d.took("flush", time.Now())
	if err := d.o.wait(ctx); err != nil {
		return err
	}
	return d.o.v.Flush(ctx)
}

// Trim implements blockdev.Trimmer.
func (d *Device) Trim(ctx context.Context, off, n int64) error {
	defer d.took("trim", time.Now())
	if err := d.o.wait(ctx); err != nil {
		return err
	}
	return d.o.v.Trim(ctx, off, n)
}

// WriteZeroes implements blockdev.Zeroer.
func (d *Device) WriteZeroes(ctx context.Context, off, n int64, how blockdev.Zeroing) error {
	defer d.took("write_zeroes", time.Now())
	if err := d.o.wait(ctx); err != nil {
		return err
	}
	return d.o.v.WriteZeroes(ctx, off, n, how)
}

// Extents implements blockdev.Mapper.
func (d *Device) Extents(ctx context.Context, off, n int64, yield func(blockdev.Extent) bool) error {
	if err := d.o.wait(ctx); err != nil {
		return err
	}
	return d.o.v.Extents(ctx, off, n, yield)
}
