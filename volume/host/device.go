package host

import (
	"context"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/volume"
)

// A Device is a volume of this node as a block device, whose requests are counted. They wait while the volume is being
// opened. Close ends nothing: the Host keeps volumes.
type Device struct {
	*blockdev.AroundWriter
	o *opened
}

func newDevice(o *opened, requests *blockdev.Metrics) *Device {
	return &Device{blockdev.NewAroundWriter(waiting{o}, requests), o}
}

// Close implements disk.Device.
func (d *Device) Close() error { return nil }

// Leave implements disk.Leaver: giving a volume up is the Host's, which waits for its store.
func (d *Device) Leave(context.Context) error { return nil }

// Quiet implements export.Quieter.
func (d *Device) Quiet(alone func() bool) (end func()) { return d.o.quiet.Begin(alone) }

// Quiet has a volume answer flushes when its journal has everything, whenever alone says that only its node uses the device, until end is
// called.
func Quiet(h *Host, id volume.ID, alone func() bool) (end func()) {
	o := h.find(id)
	if o == nil {
		return func() {}
	}
	return o.quiet.Begin(alone)
}

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

// waiting is a volume whose requests wait until it is open.
type waiting struct{ o *opened }

// Size implements blockdev.Device.
func (w waiting) Size() int64 { return w.o.size() }

// BlockSize implements blockdev.Device.
func (waiting) BlockSize() int { return volume.Block }

// ReadAt implements blockdev.Device.
func (w waiting) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := w.o.wait(ctx); err != nil {
		return 0, err
	}
	return w.o.v.ReadAt(ctx, p, off)
}

// WriteAt implements blockdev.Writer.
func (w waiting) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := w.o.wait(ctx); err != nil {
		return err
	}
	return w.o.v.WriteAt(ctx, p, off)
}

// WriteSync implements blockdev.Syncer.
func (w waiting) WriteSync(ctx context.Context, p []byte, off int64) error {
	if err := w.o.wait(ctx); err != nil {
		return err
	}
	return w.o.v.WriteSync(ctx, p, off)
}

// Flush implements blockdev.Writer. What was acknowledged before the volume is open is in its journal, which an earlier process wrote.
func (w waiting) Flush(ctx context.Context) error {
	own, err := w.o.quiet.Or(ctx, w.o.wait)
	switch {
	case err != nil:
		return err
	case own:
		return w.o.journals.Sync(w.o.ID)
	}
	return w.o.v.Flush(ctx)
}

// Trim implements blockdev.Trimmer.
func (w waiting) Trim(ctx context.Context, off, n int64) error {
	if err := w.o.wait(ctx); err != nil {
		return err
	}
	return w.o.v.Trim(ctx, off, n)
}

// WriteZeroes implements blockdev.Zeroer.
func (w waiting) WriteZeroes(ctx context.Context, off, n int64, how blockdev.Zeroing) error {
	if err := w.o.wait(ctx); err != nil {
		return err
	}
	return w.o.v.WriteZeroes(ctx, off, n, how)
}

// Extents implements blockdev.Mapper.
func (w waiting) Extents(ctx context.Context, off, n int64, yield func(blockdev.Extent) bool) error {
	if err := w.o.wait(ctx); err != nil {
		return err
	}
	return w.o.v.Extents(ctx, off, n, yield)
}
