package nbd_test

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/nbd"
	"github.com/remora-storage/remora/conformance/suite"
)

// remote is an export as a device: one request at a time, by simple replies or structured ones.
type remote struct {
	size       int64
	structured bool

	mu     sync.Mutex // guards c and handle
	c      *client
	handle uint64
}

// Commands and flags of the protocol.
const (
	cmdRead, cmdWrite, cmdFlush, cmdTrim, cmdZeroes, cmdStatus = 0, 1, 3, 4, 6, 7
	flagFUA, flagNoHole, flagFast                              = 1 << 0, 1 << 1, 1 << 4
)

func (r *remote) Size() int64    { return r.size }
func (r *remote) BlockSize() int { return 1 }

// do makes a request and returns what was read.
func (r *remote) do(flags, cmd uint16, off, n int64, payload []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handle++
	r.c.request(flags, cmd, r.handle, uint64(off), uint32(n), payload...)
	if r.structured && (cmd == cmdRead || cmd == cmdStatus) {
		return r.chunks(off, n)
	}
	handle, errno := r.c.reply()
	switch {
	case handle != r.handle:
		r.c.t.Fatalf("answer to %d, not %d", handle, r.handle)
	case errno != 0:
		return nil, unix.Errno(errno)
	case cmd == cmdRead:
		return r.c.read(int(n)), nil
	}
	return nil, nil
}

// chunks reads the chunks of one reply: data, holes, the extents of block status, or an error.
func (r *remote) chunks(off, n int64) ([]byte, error) {
	got := make([]byte, n)
	for {
		flags, kind, handle, data := r.c.chunk()
		if handle != r.handle {
			r.c.t.Fatalf("answer to %d, not %d", handle, r.handle)
		}
		switch {
		case kind == 0: // none
		case kind == 1: // data
			copy(got[int64(binary.BigEndian.Uint64(data))-off:], data[8:])
		case kind == 2: // a hole
			at := int64(binary.BigEndian.Uint64(data)) - off
			clear(got[at : at+int64(binary.BigEndian.Uint32(data[8:]))])
		case kind == 5: // block status
			got = data[4:]
		case kind&(1<<15) != 0:
			return nil, unix.Errno(binary.BigEndian.Uint32(data))
		default:
			r.c.t.Fatalf("chunk of kind %d", kind)
		}
		if flags&1 != 0 {
			return got, nil
		}
	}
}

func (r *remote) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off >= r.size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), r.size-off)]
	if len(p) == 0 {
		return 0, nil
	}
	got, err := r.do(0, cmdRead, off, int64(len(p)), nil)
	return copy(p, got), err
}

func (r *remote) change(flags, cmd uint16, off, n int64, payload []byte) error {
	if err := blockdev.Check(r, off, n); err != nil || n == 0 {
		return err // as a client in a kernel does
	}
	_, err := r.do(flags, cmd, off, n, payload)
	return err
}

func (r *remote) WriteAt(_ context.Context, p []byte, off int64) error {
	return r.change(0, cmdWrite, off, int64(len(p)), p)
}

func (r *remote) WriteSync(_ context.Context, p []byte, off int64) error {
	return r.change(flagFUA, cmdWrite, off, int64(len(p)), p)
}

func (r *remote) Flush(context.Context) error {
	_, err := r.do(0, cmdFlush, 0, 0, nil)
	return err
}

func (r *remote) Trim(_ context.Context, off, n int64) error {
	return r.change(0, cmdTrim, off, n, nil)
}

func (r *remote) WriteZeroes(_ context.Context, off, n int64, how blockdev.Zeroing) error {
	var flags uint16
	if how.NoHole {
		flags |= flagNoHole
	}
	if how.Fast {
		flags |= flagFast
	}
	err := r.change(flags, cmdZeroes, off, n, nil)
	if err == unix.EOPNOTSUPP {
		return blockdev.ErrNotFast
	}
	return err
}

// status is a remote that asks for block status.
type status struct{ *remote }

func (s status) Extents(_ context.Context, off, n int64, yield func(blockdev.Extent) bool) error {
	if err := blockdev.Check(s, off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		all, err := s.do(0, cmdStatus, off, end-off, nil)
		if err != nil {
			return err
		}
		for ; len(all) >= 8 && off < end; all = all[8:] {
			k, bits := int64(binary.BigEndian.Uint32(all)), binary.BigEndian.Uint32(all[4:])
			if !yield(blockdev.Extent{Len: k, Hole: bits&1 != 0, Zero: bits&2 != 0}) {
				return nil
			}
			off += k
		}
	}
	return nil
}

// TestDevice: what a client sees of an export is a device like any other, whether the server answers from memory, from the
// page cache or by workers, in simple replies or structured ones.
func TestDevice(t *testing.T) {
	for name, exported := range map[string]func(t *testing.T, size int64) blockdev.Device{
		"memory":     func(t *testing.T, size int64) blockdev.Device { return suite.RAM(t, size) },
		"file":       func(t *testing.T, size int64) blockdev.Device { return suite.File(t, size, blockdev.FileOptions{}) },
		"by workers": func(t *testing.T, size int64) blockdev.Device { return plain{suite.RAM(t, size)} },
	} {
		for how, structured := range map[string]bool{"simple": false, "structured": true} {
			t.Run(name+", "+how, func(t *testing.T) {
				suite.Device(t, func(t *testing.T, size int64) blockdev.Device {
					socket := serve(t, nbd.Options{}, nbd.Export{Device: exported(t, size)})
					r := &remote{size: size, structured: structured, c: start(t, socket, structured)}
					if structured {
						return status{r}
					}
					return r
				})
			})
		}
	}
}
