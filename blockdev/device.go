package blockdev

import (
	"context"
	"errors"
	"fmt"
)

// A Device is a fixed number of bytes that can be read at any offset. All methods of a device, those of
// the interfaces below too, are safe for concurrent use and return soon after ctx ends.
//
// Concurrency, ordering and durability are those of NBD
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, "Ordering of messages and writes"):
//
//   - Requests that run at the same time may take effect in any order. Where a read overlaps with a write, or
//     two writes with each other, each of the overlapping bytes is the one or the other; nobody waits.
//   - A request that begins after a write has returned sees what was written.
//   - A write is on stable storage after a Flush that began after the write had returned, through
//     whichever client either came. Before that a crash may lose it, keep it, or keep parts of it.
//   - A write that returned an error, or that never returned, may have been carried out, not or in part.
type Device interface {
	// ReadAt fills p from off and returns how many bytes it read: fewer than len(p) only at
	// the end, where the error is nil. Bytes that it returns are right; where it cannot have
	// them it fails.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)

	// Size returns the number of bytes, a multiple of BlockSize. It never becomes less.
	Size() int64

	// BlockSize returns the bytes of a block, a power of two: offsets and lengths of all requests are
	// multiples of it. A device that takes any has blocks of 1 byte.
	BlockSize() int
}

// A Writer is a Device that can be written to. The abilities below are those of some Writers; Trim,
// WriteZeroes and WriteSync do for the others what their callers want.
type Writer interface {
	Device

	// WriteAt writes all of p, or fails. It does not keep p.
	WriteAt(ctx context.Context, p []byte, off int64) error

	// Flush returns when every write, trim and zeroing that had returned before Flush was called is on
	// stable storage. After a Flush has failed, all that follow fail: what is lost once stays lost.
	Flush(ctx context.Context) error
}

// A Syncer can make one write durable for less than a Flush costs: NBD's FUA.
type Syncer interface {
	// WriteSync is WriteAt which returns when p is on stable storage.
	WriteSync(ctx context.Context, p []byte, off int64) error
}

// A Trimmer can give back the storage of blocks whose content nobody needs.
type Trimmer interface {
	// Trim says so of n bytes from off. Until they are written again they read as zeros or as before,
	// block by block.
	Trim(ctx context.Context, off, n int64) error
}

// A Zeroer can write zeros without being sent them.
type Zeroer interface {
	// WriteZeroes makes n bytes from off read as zeros.
	WriteZeroes(ctx context.Context, off, n int64, how Zeroing) error
}

// Zeroing says how zeros are written.
type Zeroing struct {
	NoHole bool // keep the storage: later writes there must not fail for want of room
	Fast   bool // fail with ErrNotFast unless this is faster than writing zeros
}

// A Mapper knows which of its bytes are stored: NBD's block status.
type Mapper interface {
	// Extents calls yield for the ranges from off on, in order and without a gap, until n bytes are
	// covered or yield returns false. The last one may end beyond off+n, but not beyond the device.
	Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error
}

// An Extent is a range that is alike.
type Extent struct {
	Len  int64 // bytes
	Hole bool  // takes no storage
	Zero bool  // reads as zeros
}

// A Quick device answers some requests at once. Whoever serves many clients' requests asks it first,
// before it has another goroutine wait for the answer.
type Quick interface {
	// ReadNow is ReadAt if that does not wait for anything. Where it does, ok is false and p's
	// content undefined.
	ReadNow(p []byte, off int64) (ok bool)

	// WriteNow is WriteAt in the same way. ok is false where nothing or a part was written.
	WriteNow(p []byte, off int64) (ok bool)
}

// Mapped devices lie in memory.
type Mapped interface {
	// View returns the memory of n bytes from off, which Check has let pass: reading it is ReadAt and, if
	// write is true, writing to it is WriteAt. It is valid until the device is closed.
	View(off, n int64, write bool) []byte
}

// Errors that callers tell apart. A device may return system calls' errors as well.
var (
	ErrRange     = errors.New("beyond the end of the device")
	ErrAlignment = errors.New("not a multiple of the block size")
	ErrReadOnly  = errors.New("the device is read-only")
	ErrNotFast   = errors.New("not faster than writing zeros")
)

// Check returns an error unless n bytes from off lie in a device's blocks.
func Check(d Device, off, n int64) error {
	size := d.Size()
	switch {
	case off < 0 || n < 0 || off > size || n > size-off:
		return fmt.Errorf("%d bytes at %d of %d: %w", n, off, size, ErrRange)
	case (off|n)&int64(d.BlockSize()-1) != 0:
		return fmt.Errorf("%d bytes at %d, blocks of %d: %w", n, off, d.BlockSize(), ErrAlignment)
	}
	return nil
}

// WriteSync writes p and returns when it is on stable storage.
func WriteSync(ctx context.Context, d Writer, p []byte, off int64) error {
	if s, ok := d.(Syncer); ok {
		return s.WriteSync(ctx, p, off)
	}
	if err := d.WriteAt(ctx, p, off); err != nil {
		return err
	}
	return d.Flush(ctx)
}

// Trim tells a device that nobody needs n bytes from off. One that cannot use that does nothing.
func Trim(ctx context.Context, d Writer, off, n int64) error {
	if t, ok := d.(Trimmer); ok {
		return t.Trim(ctx, off, n)
	}
	return Check(d, off, n)
}

// WriteZeroes makes n bytes from off read as zeros, by writing them if nothing else is possible.
func WriteZeroes(ctx context.Context, d Writer, off, n int64, how Zeroing) error {
	if z, ok := d.(Zeroer); ok {
		return z.WriteZeroes(ctx, off, n, how)
	}
	if err := Check(d, off, n); err != nil {
		return err
	}
	if how.Fast {
		return ErrNotFast
	}
	return fillZeros(ctx, d, off, n)
}

var zeros = make([]byte, 1<<20)

// fillZeros writes zeros.
func fillZeros(ctx context.Context, d Writer, off, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if err := d.WriteAt(ctx, zeros[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Extents tells which bytes of a device are stored. One that does not know stores all.
func Extents(ctx context.Context, d Device, off, n int64, yield func(Extent) bool) error {
	if m, ok := d.(Mapper); ok {
		return m.Extents(ctx, off, n, yield)
	}
	if err := Check(d, off, n); err != nil {
		return err
	}
	if n > 0 {
		yield(Extent{Len: n})
	}
	return nil
}
