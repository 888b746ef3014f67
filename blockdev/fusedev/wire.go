package fusedev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Operations and notifications of include/uapi/linux/fuse.h; go-fuse keeps its own to itself.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opReadlink    = 5
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opGetxattr    = 22
	opListxattr   = 23
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43
	opReaddirplus = 44

	notifyInvalEntry = 3 // FUSE_NOTIFY_INVAL_ENTRY, where an answer has its error

	protocolMajor = 7
	protocolMinor = 41

	initExt     = 1 << 30 // FUSE_INIT_EXT: there are more flags
	inHeader    = 40      // bytes of struct fuse_in_header
	writeHeader = 40      // of struct fuse_write_in
	outHeader   = 16
	initOutLen  = 64
	entryLen    = 128
	attrLen     = 104
)

var errShort = errors.New("FUSE request is shorter than its kind")

func putUint32(p []byte, v uint32) { binary.NativeEndian.PutUint32(p, v) }
func putUint64(p []byte, v uint64) { binary.NativeEndian.PutUint64(p, v) }

// header reads struct fuse_in_header.
func header(p []byte) (h fuse.InHeader, err error) {
	if len(p) < inHeader {
		return h, errShort
	}
	h.Length = binary.NativeEndian.Uint32(p)
	h.Opcode = binary.NativeEndian.Uint32(p[4:])
	h.Unique = binary.NativeEndian.Uint64(p[8:])
	h.NodeId = binary.NativeEndian.Uint64(p[16:])
	h.Uid = binary.NativeEndian.Uint32(p[24:])
	h.Gid = binary.NativeEndian.Uint32(p[28:])
	h.Pid = binary.NativeEndian.Uint32(p[32:])
	if int(h.Length) < inHeader || int(h.Length) > len(p) {
		return h, fmt.Errorf("%w: %d bytes in %d", errShort, h.Length, len(p))
	}
	return h, nil
}

// name returns the string at the start of a body.
func name(body []byte) (string, error) {
	for i, b := range body {
		if b == 0 {
			return string(body[:i]), nil
		}
	}
	return "", errShort
}

// structure returns the bytes of a protocol structure, which are what the kernel reads.
func structure[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// write sends an answer or a notification: an error or a code, and a body.
func (c *Conn) write(code int32, unique uint64, bodies ...[]byte) error {
	n := outHeader
	for _, b := range bodies {
		n += len(b)
	}
	head := make([]byte, outHeader)
	putUint32(head, uint32(n))
	putUint32(head[4:], uint32(code))
	putUint64(head[8:], unique)
	iov := append(make([][]byte, 0, 3), head)
	for _, b := range bodies {
		if len(b) > 0 {
			iov = append(iov, b)
		}
	}
	raw, err := c.dev.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		for {
			_, err = unix.Writev(int(fd), iov)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}); cerr != nil {
		return cerr
	}
	return err
}
