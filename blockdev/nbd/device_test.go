package nbd_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/nbd"
	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/suite"
)

// remote is an export as a device: one request at a time, by simple replies or structured ones. NBD has no word for leaving a
// request, so the client hangs up, and comes back for its next one.
type remote struct {
	size    int64
	connect func() *client

	structured bool

	turn   chan struct{} // holds one while a request runs
	c      *client       // the request's that runs, as is the field below; nil after hanging up
	handle uint64
}

func newRemote(t *testing.T, size int64, structured bool, device blockdev.Device) *remote {
	socket := serve(t, nbd.Options{}, nbd.Export{Device: device})
	return &remote{
		size: size, structured: structured, turn: make(chan struct{}, 1),
		connect: func() *client { return start(t, socket, structured) },
	}
}

// device returns what the suite sees: a client that asks for structured replies also asks for block status.
func (r *remote) device() blockdev.Device {
	if r.structured {
		return status{r}
	}
	return r
}

// Commands and flags of the protocol.
const (
	cmdRead, cmdWrite, cmdFlush, cmdTrim, cmdZeroes, cmdStatus = 0, 1, 3, 4, 6, 7
	flagFUA, flagNoHole, flagFast                              = 1 << 0, 1 << 1, 1 << 4
)

func (r *remote) Size() int64    { return r.size }
func (r *remote) BlockSize() int { return 1 }

// do makes a request and returns what was read.
func (r *remote) do(ctx context.Context, flags, cmd uint16, off, n int64, payload []byte) ([]byte, error) {
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-r.turn }()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.c == nil {
		r.c = r.connect()
	}
	c := r.c
	hangUp := context.AfterFunc(ctx, func() { _ = c.Close() })
	r.handle++
	r.c.request(flags, cmd, r.handle, uint64(off), uint32(n), payload...)
	got, errno, err := r.answer(cmd, off, n)
	switch {
	case !hangUp():
		r.c = nil
		return nil, ctx.Err()
	case err != nil:
		r.c.t.Errorf("request %d: %v", r.handle, err)
	case errno != 0:
		err = unix.Errno(errno)
	}
	return got, err
}

// answer reads the answer to a request: the bytes that were read, or an error of the export.
func (r *remote) answer(cmd uint16, off, n int64) (got []byte, errno uint32, err error) {
	if r.structured && (cmd == cmdRead || cmd == cmdStatus) {
		return r.chunks(off, n)
	}
	handle, errno, err := r.c.nextReply()
	switch {
	case err != nil:
	case handle != r.handle:
		err = fmt.Errorf("answer to %d", handle)
	case cmd == cmdRead && errno == 0:
		got, err = r.c.next(int(n))
	}
	return got, errno, err
}

// chunks reads the chunks of one reply: data, holes, the extents of block status, or an error.
func (r *remote) chunks(off, n int64) (got []byte, errno uint32, err error) {
	got = make([]byte, n)
	for {
		flags, kind, handle, data, err := r.c.nextChunk()
		switch {
		case err != nil:
			return nil, 0, err
		case handle != r.handle:
			return nil, 0, fmt.Errorf("answer to %d", handle)
		case kind == 0: // none
		case kind == 1: // data
			copy(got[int64(binary.BigEndian.Uint64(data))-off:], data[8:])
		case kind == 2: // a hole
			at := int64(binary.BigEndian.Uint64(data)) - off
			clear(got[at : at+int64(binary.BigEndian.Uint32(data[8:]))])
		case kind == 5: // block status
			got = data[4:]
		case kind&(1<<15) != 0:
			return nil, binary.BigEndian.Uint32(data), nil
		default:
			return nil, 0, fmt.Errorf("chunk of kind %d", kind)
		}
		if flags&1 != 0 {
			return got, 0, nil
		}
	}
}

func (r *remote) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off >= r.size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), r.size-off)]
	if len(p) == 0 {
		return 0, nil
	}
	got, err := r.do(ctx, 0, cmdRead, off, int64(len(p)), nil)
	return copy(p, got), err
}

func (r *remote) change(ctx context.Context, flags, cmd uint16, off, n int64, payload []byte) error {
	if err := blockdev.Check(r, off, n); err != nil || n == 0 {
		return err // as a client in a kernel does
	}
	_, err := r.do(ctx, flags, cmd, off, n, payload)
	return err
}

func (r *remote) WriteAt(ctx context.Context, p []byte, off int64) error {
	return r.change(ctx, 0, cmdWrite, off, int64(len(p)), p)
}

func (r *remote) WriteSync(ctx context.Context, p []byte, off int64) error {
	return r.change(ctx, flagFUA, cmdWrite, off, int64(len(p)), p)
}

func (r *remote) Flush(ctx context.Context) error {
	_, err := r.do(ctx, 0, cmdFlush, 0, 0, nil)
	return err
}

func (r *remote) Trim(ctx context.Context, off, n int64) error {
	return r.change(ctx, 0, cmdTrim, off, n, nil)
}

func (r *remote) WriteZeroes(ctx context.Context, off, n int64, how blockdev.Zeroing) error {
	var flags uint16
	if how.NoHole {
		flags |= flagNoHole
	}
	if how.Fast {
		flags |= flagFast
	}
	err := r.change(ctx, flags, cmdZeroes, off, n, nil)
	if err == unix.EOPNOTSUPP {
		return blockdev.ErrNotFast
	}
	return err
}

// status is a remote that asks for block status.
type status struct{ *remote }

func (s status) Extents(ctx context.Context, off, n int64, yield func(blockdev.Extent) bool) error {
	if err := blockdev.Check(s, off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		all, err := s.do(ctx, 0, cmdStatus, off, end-off, nil)
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
				has := suite.Changes
				ops := faultdev.Ops()
				if structured {
					has |= suite.Mapper
				} else {
					ops = slices.DeleteFunc(ops, func(op blockdev.Op) bool { return op == blockdev.OpMap })
				}
				suite.Device(t, suite.Implementation{
					Has: has,
					New: func(t *testing.T, size int64) blockdev.Device {
						return newRemote(t, size, structured, exported(t, size)).device()
					},
					Held: func(t *testing.T, size int64) suite.Held {
						d, gate := faultdev.Hold(exported(t, size))
						return suite.Held{
							Device: newRemote(t, size, structured, d).device(), Ops: ops,
							Let: func() { noneWaits(t, gate); gate.Open() },
						}
					},
				})
			})
		}
	}
}

// noneWaits insists that the server has given up what it carried out for clients that have hung up.
func noneWaits(t *testing.T, gate *faultdev.Gate) {
	t.Helper()
	for end := time.Now().Add(time.Minute); gate.Waiting() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d requests of clients that have hung up still run", gate.Waiting())
		}
	}
}
