package blockdev

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// bytesDevice is a Device in memory.
type bytesDevice []byte

// Memory returns a Device that holds p, which must not change any more.
func Memory(p []byte) Device { return bytesDevice(p) }

func (d bytesDevice) Size() int64    { return int64(len(d)) }
func (d bytesDevice) BlockSize() int { return 1 }

func (d bytesDevice) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(d)) {
		return 0, nil
	}
	return copy(p, d[off:]), nil
}

// RAM is a Writer in memory, which it takes as it is written to. What is "stable" in it ends with
// the process.
type RAM struct {
	mem     []byte
	written []atomic.Uint64 // one bit a unit: it may hold something else than zeros
}

const ramUnit = 64 << 10 // bytes that are told apart by Extents

// NewRAM returns size bytes of zeros. Close must be called.
func NewRAM(size int64) (*RAM, error) {
	if size <= 0 {
		return nil, fmt.Errorf("memory device of %d bytes", size)
	}
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory device of %d bytes: %w", size, err)
	}
	units := (size + ramUnit - 1) / ramUnit
	return &RAM{mem: mem, written: make([]atomic.Uint64, (units+63)/64)}, nil
}

// Close gives the memory back. Nobody may use the device any more.
func (d *RAM) Close() error { return unix.Munmap(d.mem) }

// Size implements Device.
func (d *RAM) Size() int64 { return int64(len(d.mem)) }

// BlockSize implements Device.
func (d *RAM) BlockSize() int { return 1 }

// ReadAt implements Device.
func (d *RAM) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return bytesDevice(d.mem).ReadAt(ctx, p, off)
}

// WriteAt implements Writer.
func (d *RAM) WriteAt(_ context.Context, p []byte, off int64) error {
	if err := Check(d, off, int64(len(p))); err != nil {
		return err
	}
	copy(d.View(off, int64(len(p)), true), p)
	return nil
}

// Flush implements Writer.
func (d *RAM) Flush(context.Context) error { return nil }

// View implements Mapped.
func (d *RAM) View(off, n int64, write bool) []byte {
	for u := off / ramUnit; write && u*ramUnit < off+n; u++ {
		if w, bit := &d.written[u/64], uint64(1)<<(u%64); w.Load()&bit == 0 {
			w.Or(bit)
		}
	}
	return d.mem[off : off+n : off+n]
}

// Trim implements Trimmer. Trimmed bytes read as zeros.
func (d *RAM) Trim(ctx context.Context, off, n int64) error {
	return d.WriteZeroes(ctx, off, n, Zeroing{})
}

// WriteZeroes implements Zeroer. Whole units are given back.
func (d *RAM) WriteZeroes(_ context.Context, off, n int64, how Zeroing) error {
	if err := Check(d, off, n); err != nil {
		return err
	}
	end := off + n
	first, last := (off+ramUnit-1)/ramUnit*ramUnit, end/ramUnit*ramUnit
	if end == int64(len(d.mem)) {
		last = end
	}
	if how.NoHole || first >= last {
		clear(d.View(off, n, true))
		return nil
	}
	if off < first {
		clear(d.View(off, first-off, true))
	}
	if last < end {
		clear(d.View(last, end-last, true))
	}
	if err := unix.Madvise(d.mem[first:last], unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("give memory back: %w", err)
	}
	for u := first / ramUnit; u*ramUnit < last; u++ {
		d.written[u/64].And(^(uint64(1) << (u % 64)))
	}
	return nil
}

// Extents implements Mapper.
func (d *RAM) Extents(_ context.Context, off, n int64, yield func(Extent) bool) error {
	if err := Check(d, off, n); err != nil {
		return err
	}
	holds := func(u int64) bool { return d.written[u/64].Load()&(1<<(u%64)) != 0 }
	for end := off + n; off < end; {
		u := off / ramUnit
		data := holds(u)
		for u++; u*ramUnit < end && holds(u) == data; u++ {
		}
		next := min(u*ramUnit, end)
		if !yield(Extent{Len: next - off, Hole: !data, Zero: !data}) {
			return nil
		}
		off = next
	}
	return nil
}
