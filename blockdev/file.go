package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A File is a Writer whose bytes are a regular, sparse or block file. Where it was opened read-only,
// its writes fail with ErrReadOnly; ReadOnly hides them.
type File struct {
	f        *os.File
	fd       int
	size     int64
	block    int
	direct   bool
	readOnly bool

	cannotTell atomic.Bool           // the file system does not know whether a write would wait
	waited     atomic.Int64          // until when, since processStart, writes are taken to wait, in nanoseconds
	broken     atomic.Pointer[error] // the first Flush that failed
}

// FileOptions say how a file is opened. The zero value reads and writes through the page cache.
type FileOptions struct {
	ReadOnly bool
	// Direct goes past the page cache, as the kernel's own writes to a device that it needs for giving
	// memory back must. Blocks are those of the file's storage then.
	Direct bool
}

// OpenFile opens a file that exists and that nobody else has opened so for writing. Close must be called.
func OpenFile(path string, opts FileOptions) (*File, error) {
	mode := os.O_RDWR
	if opts.ReadOnly {
		mode = os.O_RDONLY
	}
	if opts.Direct {
		mode |= unix.O_DIRECT
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	disk, block := isDisk(st.Mode())
	if !disk {
		return nil, fmt.Errorf("%s is neither a regular file nor a block device", path)
	}
	if block && !opts.ReadOnly {
		mode |= unix.O_EXCL // fails while it is mounted
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	d := &File{f: f, block: 1, direct: opts.Direct, readOnly: opts.ReadOnly}
	err = claim(f, opts.ReadOnly)
	if err == nil {
		err = d.measure(path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// isDisk reports whether a file can be a device, and whether it is one of the kernel's.
func isDisk(mode os.FileMode) (disk, block bool) {
	block = mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0
	return block || mode.IsRegular(), block
}

// claim keeps others from writing to the file at the same time, as far as they ask.
func claim(f *os.File, readOnly bool) error {
	how := unix.LOCK_EX
	if readOnly {
		how = unix.LOCK_SH
	}
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use by another process that serves it", f.Name())
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}

// measure finds out the device's size and blocks.
func (d *File) measure(path string) (err error) {
	if d.size, err = d.f.Seek(0, io.SeekEnd); err != nil { // of block devices, too
		return err
	}
	d.fd = int(d.f.Fd())
	if err := unix.SetNonblock(d.fd, false); err != nil { // Fd has done it for a regular file
		return err
	}
	if !d.direct {
		return nil
	}
	d.block = directBlock(d.fd)
	if d.size%int64(d.block) != 0 {
		return fmt.Errorf("%s has %d bytes, no multiple of the %d by which its storage is read directly", path, d.size, d.block)
	}
	return nil
}

// directBlock returns the unit of direct I/O.
func directBlock(fd int) int {
	const usual = 4096
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err != nil || st.Mask&unix.STATX_DIOALIGN == 0 || st.Dio_offset_align == 0 {
		return usual
	}
	return int(st.Dio_offset_align)
}

// Close closes the file, without a Flush.
func (d *File) Close() error { return d.f.Close() }

// Size implements Device.
func (d *File) Size() int64 { return d.size }

// BlockSize implements Device.
func (d *File) BlockSize() int { return d.block }

// ReadAt implements Device.
func (d *File) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off >= d.size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), d.size-off)]
	if d.direct && !aligned(p) {
		b := AlignedBuffer(len(p))
		n, err := d.read(b, off)
		return copy(p, b[:n]), err
	}
	return d.read(p, off)
}

func (d *File) read(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(d.fd, p[done:], off+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF // it was made shorter
		}
		if err != nil {
			return done, fmt.Errorf("read %s at %d: %w", d.f.Name(), off, err)
		}
		done += n
	}
	return done, nil
}

// ReadNow implements Quick: from the page cache.
func (d *File) ReadNow(p []byte, off int64) bool {
	if d.direct {
		return false
	}
	n, err := preadv2(d.fd, p, off, unix.RWF_NOWAIT)
	return err == 0 && n == len(p)
}

// WriteNow implements Quick: into the page cache. Not every file system can tell whether that would wait
// (ext4 cannot). There it does not, until it did: then it is left to others for a while.
func (d *File) WriteNow(p []byte, off int64) bool {
	if d.direct || d.readOnly || Check(d, off, int64(len(p))) != nil {
		return false
	}
	if !d.cannotTell.Load() {
		n, err := pwritev2(d.fd, p, off, unix.RWF_NOWAIT)
		if err != unix.EOPNOTSUPP {
			return err == 0 && n == len(p)
		}
		d.cannotTell.Store(true)
	}
	began := time.Since(processStart)
	if int64(began) < d.waited.Load() {
		return false
	}
	n, err := pwritev2(d.fd, p, off, 0)
	if now := time.Since(processStart); now-began > hasWaited {
		d.waited.Store(int64(now + waitsFor))
	}
	return err == 0 && n == len(p)
}

const (
	hasWaited = time.Millisecond       // no copy of one request takes so long
	waitsFor  = 100 * time.Millisecond // how long nothing is tried then
)

// WriteAt implements Writer.
func (d *File) WriteAt(_ context.Context, p []byte, off int64) error { return d.write(p, off, 0) }

// WriteSync implements Syncer.
func (d *File) WriteSync(_ context.Context, p []byte, off int64) error {
	return d.write(p, off, unix.RWF_DSYNC)
}

func (d *File) write(p []byte, off int64, flags int) error {
	if err := d.checkWrite(off, int64(len(p))); err != nil {
		return err
	}
	if d.direct && !aligned(p) {
		b := AlignedBuffer(len(p))
		copy(b, p)
		p = b
	}
	for len(p) > 0 {
		n, err := pwritev2(d.fd, p, off, flags)
		if err == unix.EINTR {
			continue
		}
		if err == 0 && n == 0 {
			err = unix.EIO
		}
		if err != 0 {
			return fmt.Errorf("write %s at %d: %w", d.f.Name(), off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (d *File) checkWrite(off, n int64) error {
	if d.readOnly {
		return fmt.Errorf("write %s: %w", d.f.Name(), ErrReadOnly)
	}
	return Check(d, off, n)
}

// Flush implements Writer. The kernel reports a write that it could not do to one fdatasync, and forgets
// it: this device does not.
func (d *File) Flush(context.Context) error {
	if err := d.broken.Load(); err != nil {
		return *err
	}
	for {
		err := unix.Fdatasync(d.fd)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			err = fmt.Errorf("sync %s: %w (earlier writes may be lost)", d.f.Name(), err)
			d.broken.CompareAndSwap(nil, &err)
		}
		return err
	}
}

// Trim implements Trimmer. Trimmed bytes read as zeros where storage can be given back.
func (d *File) Trim(_ context.Context, off, n int64) error {
	if err := d.checkWrite(off, n); err != nil || n == 0 {
		return err
	}
	err := fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("trim %s at %d+%d: %w", d.f.Name(), off, n, err)
	}
	return nil
}

// WriteZeroes implements Zeroer.
func (d *File) WriteZeroes(ctx context.Context, off, n int64, how Zeroing) error {
	if err := d.checkWrite(off, n); err != nil || n == 0 {
		return err
	}
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if how.NoHole {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := fallocate(d.fd, mode, off, n)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("write zeros to %s at %d+%d: %w", d.f.Name(), off, n, err)
	case how.Fast:
		return ErrNotFast
	}
	return fillZeros(ctx, d, off, n)
}

func fallocate(fd int, mode uint32, off, n int64) error {
	for {
		if err := unix.Fallocate(fd, mode, off, n); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Extents implements Mapper, by what the file system says of holes.
func (d *File) Extents(ctx context.Context, off, n int64, yield func(Extent) bool) error {
	if err := Check(d, off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(d.fd, off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole up to the end
			data = d.size
		case err != nil: // it cannot tell, as for block devices
			yield(Extent{Len: end - off})
			return nil
		}
		hole := data > off
		next := data
		if !hole {
			if next, err = unix.Seek(d.fd, off, unix.SEEK_HOLE); err != nil {
				return fmt.Errorf("find holes of %s: %w", d.f.Name(), err)
			}
		}
		if next = min(next/int64(d.block)*int64(d.block), end); next <= off { // it changes meanwhile
			next, hole = end, false
		}
		if !yield(Extent{Len: next - off, Hole: hole, Zero: hole}) {
			return nil
		}
		off = next
	}
	return nil
}

// preadv2 and pwritev2 are the system calls for one buffer, without the allocations of those for many.
func preadv2(fd int, p []byte, off int64, flags int) (int, unix.Errno) {
	return vectored(unix.SYS_PREADV2, fd, p, off, flags)
}

func pwritev2(fd int, p []byte, off int64, flags int) (int, unix.Errno) {
	return vectored(unix.SYS_PWRITEV2, fd, p, off, flags)
}

func vectored(call uintptr, fd int, p []byte, off int64, flags int) (int, unix.Errno) {
	if len(p) == 0 {
		return 0, 0
	}
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	// The offset's upper half is of use to 32-bit machines only.
	n, _, err := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, uintptr(flags))
	if err != 0 {
		return 0, err
	}
	return int(n), 0
}
