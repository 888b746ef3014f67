package fsx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of a run.
type Options struct {
	Size   int64  // most bytes of the file
	Steps  int    // operations
	Seed   uint64 // of which everything follows
	Direct bool   // past the page cache, and so without mmap
	Device bool   // a block device: its size is Size and stays
}

const (
	page    = 4096
	largest = 256 << 10 // bytes of one operation
)

// A file is one that is being checked.
type file struct {
	opts  Options
	f     *os.File
	rnd   *rand.Rand
	model []byte // what the file must be
	buf   []byte // on a page, as direct I/O wants it
}

// Run makes the file at path, or takes the block device there, and returns how it first differed from its model.
func Run(path string, opts Options) (err error) {
	flags := os.O_RDWR
	if opts.Direct {
		flags |= unix.O_DIRECT
	}
	if !opts.Device {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	x := &file{opts: opts, f: f, rnd: rand.New(rand.NewPCG(opts.Seed, 0)), buf: OnPage(largest)}
	if opts.Device {
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0, opts.Size); err != nil {
			return fmt.Errorf("zero %s: %w", path, err)
		}
		x.model = make([]byte, opts.Size)
	}
	for step := range opts.Steps {
		name, err := x.step()
		if err != nil {
			return fmt.Errorf("%s, seed %d, step %d, %s: %w", path, opts.Seed, step, name, err)
		}
	}
	if err := x.compare(0, int64(len(x.model))); err != nil {
		return fmt.Errorf("%s, seed %d, at the end: %w", path, opts.Seed, err)
	}
	return nil
}

// OnPage returns memory that begins on a page, as direct I/O wants it.
func OnPage(n int) []byte {
	b := make([]byte, n+page)
	at := (page - int(uintptr(unsafe.Pointer(&b[0]))%page)) % page
	return b[at : at+n : at+n]
}

// step carries out one operation and returns its name.
func (x *file) step() (name string, err error) {
	type operation struct {
		name string
		do   func() error
	}
	all := []operation{
		{"read", x.read}, {"read", x.read}, {"write", x.write}, {"write", x.write}, {"write", x.write},
		{"punch", func() error { return x.zero(unix.FALLOC_FL_PUNCH_HOLE) }},
		{"zero", func() error { return x.zero(unix.FALLOC_FL_ZERO_RANGE) }},
		{"fsync", x.f.Sync},
	}
	if !x.opts.Direct {
		all = append(all, operation{"mapped read", x.mappedRead}, operation{"mapped write", x.mappedWrite})
	}
	if !x.opts.Device {
		all = append(all, operation{"truncate", x.truncate})
	}
	o := all[x.rnd.IntN(len(all))]
	return o.name, o.do()
}

// span chooses a range below limit, of whole pages where that is needed.
func (x *file) span(limit int64, whole bool) (off, n int64) {
	if limit == 0 {
		return 0, 0
	}
	off = x.rnd.Int64N(limit)
	n = 1 + x.rnd.Int64N(largest)
	if whole {
		off -= off % page
		n = (n + page - 1) / page * page
	}
	n = min(n, limit-off)
	if whole {
		n -= n % page
	}
	return off, n
}

// read compares a range.
func (x *file) read() error {
	off, n := x.span(int64(len(x.model)), x.opts.Direct)
	return x.compare(off, n)
}

func (x *file) compare(off, n int64) error {
	for n > 0 {
		p := x.buf[:min(n, largest)]
		got, err := x.f.ReadAt(p[:(len(p)+page-1)/page*page], off) // direct I/O ends at the end of the file
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if got < len(p) {
			return fmt.Errorf("read %d bytes of %d at %d", got, len(p), off)
		}
		if err := x.same(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

func (x *file) same(p []byte, off int64) error {
	want := x.model[off : off+int64(len(p))]
	if bytes.Equal(p, want) {
		return nil
	}
	for i := range p {
		if p[i] != want[i] {
			return fmt.Errorf("byte %d is %#x, want %#x (of %d bytes from %d)", off+int64(i), p[i], want[i], len(p), off)
		}
	}
	return nil
}

// fill makes bytes that were not there before.
func (x *file) fill(p []byte) {
	for i := 0; i < len(p); i += 8 {
		v := x.rnd.Uint64()
		for j := i; j < min(i+8, len(p)); j++ {
			p[j], v = byte(v), v>>8
		}
	}
}

func (x *file) write() error {
	off, n := x.span(x.opts.Size, x.opts.Direct)
	if n == 0 {
		return nil
	}
	x.fill(x.buf[:n])
	if _, err := x.f.WriteAt(x.buf[:n], off); err != nil {
		return err
	}
	x.grow(off + n)
	copy(x.model[off:], x.buf[:n])
	return nil
}

// grow lengthens the model with zeros.
func (x *file) grow(size int64) {
	if more := size - int64(len(x.model)); more > 0 {
		x.model = append(x.model, make([]byte, more)...)
	}
}

func (x *file) zero(mode uint32) error {
	off, n := x.span(int64(len(x.model)), x.opts.Device)
	if n == 0 {
		return nil
	}
	err := unix.Fallocate(int(x.f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) && mode == unix.FALLOC_FL_ZERO_RANGE && !x.opts.Device {
		return nil // some file systems have it not
	}
	if err != nil {
		return err
	}
	clear(x.model[off : off+n])
	return nil
}

func (x *file) truncate() error {
	size := x.rnd.Int64N(x.opts.Size)
	if x.opts.Direct {
		size -= size % page
	}
	if err := x.f.Truncate(size); err != nil {
		return err
	}
	x.grow(size)
	x.model = x.model[:size]
	return nil
}

// mapped has do look at a range of the file in memory.
func (x *file) mapped(prot int, do func(p []byte, off int64)) error {
	off, n := x.span(int64(len(x.model)), false)
	if n == 0 {
		return nil
	}
	from := off - off%page
	m, err := unix.Mmap(int(x.f.Fd()), from, int(off-from+n), prot, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	do(m[off-from:], off)
	if prot&unix.PROT_WRITE != 0 && x.rnd.IntN(2) == 0 {
		err = unix.Msync(m, unix.MS_SYNC)
	}
	return errors.Join(err, unix.Munmap(m))
}

func (x *file) mappedRead() error {
	var differs error
	err := x.mapped(unix.PROT_READ, func(p []byte, off int64) { differs = x.same(p, off) })
	return errors.Join(err, differs)
}

func (x *file) mappedWrite() error {
	return x.mapped(unix.PROT_READ|unix.PROT_WRITE, func(p []byte, off int64) {
		x.fill(p)
		copy(x.model[off:], p)
	})
}
