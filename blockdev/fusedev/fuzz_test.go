package fusedev

import (
	"encoding/binary"
	"log/slog"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/remora-storage/remora/conformance/heap"
)

// accepting takes every change.
type accepting struct{ fuse.RawFileSystem }

func (accepting) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if int(in.Size) != len(data) {
		return 0, fuse.EIO
	}
	return in.Size, fuse.OK
}

func (accepting) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status         { return fuse.OK }
func (accepting) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status { return fuse.OK }

// FuzzRequest: whatever lies in a slot that another process left is answered, or refused.
func FuzzRequest(f *testing.F) {
	for _, op := range []uint32{
		opLookup, opGetattr, opOpen, opRead, opReaddirplus, opGetxattr, opListxattr, opInit, opStatfs, opInterrupt, opWrite, opFsync,
		opFallocate, 4711,
	} {
		p := make([]byte, inHeader+48)
		binary.NativeEndian.PutUint32(p, uint32(len(p)))
		binary.NativeEndian.PutUint32(p[4:], op)
		copy(p[inHeader+16:], "\x00\x10\x00\x00name\x00")
		f.Add(p)
	}
	opts := Options{AnyUser: true, Writable: true, Log: slog.New(slog.DiscardHandler)}
	l := &loop{c: &Conn{opts: opts}, fs: accepting{fuse.NewDefaultRawFileSystem()}}
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := header(p)
		if err != nil {
			return
		}
		var out []byte
		var done func()
		var status fuse.Status
		most := heap.RecordMost(len(p))
		most.Memory += maxRequest // what is asked for
		most.Allocates(t, func() int64 {
			out, done, status = l.carryOut(&request{cancel: make(chan struct{})}, h, p[inHeader:h.Length])
			return 0
		})
		if status == fuse.OK && len(out) > maxRequest {
			t.Errorf("operation %d is answered with %d bytes", h.Opcode, len(out))
		}
		if done != nil {
			done()
		}
	})
}
