package fusedev

import (
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// carryOut asks the file system. It returns the answer's body, and what to do with the body once
// it is sent.
func (l *loop) carryOut(r *request, h fuse.InHeader, body []byte) (out []byte, done func(), status fuse.Status) {
	u64 := func(at int) uint64 { return binary.NativeEndian.Uint64(body[at:]) }
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(body[at:]) }
	short := func(n int) bool { return len(body) < n }
	switch h.Opcode {
	case opInit:
		if short(16) {
			return nil, nil, fuse.Status(unix.EPROTO)
		}
		return l.init(u32(0), u32(4), u32(8)), nil, fuse.OK
	case opLookup:
		s, err := name(body)
		if err != nil {
			return nil, nil, fuse.EINVAL
		}
		var e fuse.EntryOut
		status = l.fs.Lookup(r.cancel, &h, s, &e)
		return structure(&e)[:entryLen], nil, status
	case opGetattr:
		var a fuse.AttrOut
		status = l.fs.GetAttr(r.cancel, &fuse.GetAttrIn{InHeader: h}, &a)
		return structure(&a)[:attrLen], nil, status
	case opReadlink:
		target, status := l.fs.Readlink(r.cancel, &h)
		return target, nil, status
	case opOpen, opOpendir:
		if short(4) {
			return nil, nil, fuse.EINVAL
		}
		var o fuse.OpenOut
		in := &fuse.OpenIn{InHeader: h, Flags: u32(0)}
		if h.Opcode == opOpen {
			status = l.fs.Open(r.cancel, in, &o)
		} else {
			status = l.fs.OpenDir(r.cancel, in, &o)
		}
		return structure(&o), nil, status
	case opRead, opReaddir, opReaddirplus:
		if short(20) || u32(16) > maxRequest {
			return nil, nil, fuse.EINVAL
		}
		in := &fuse.ReadIn{InHeader: h, Fh: u64(0), Offset: u64(8), Size: u32(16)}
		buf := takeBuffer(int(in.Size))
		done = func() { giveBuffer(buf) }
		if h.Opcode == opRead {
			res, status := l.fs.Read(r.cancel, in, buf)
			if status != fuse.OK {
				return nil, done, status
			}
			out, status = res.Bytes(buf)
			return out, done, status
		}
		list := fuse.NewDirEntryList(buf, in.Offset)
		if h.Opcode == opReaddir {
			status = l.fs.ReadDir(r.cancel, in, list)
		} else {
			status = l.fs.ReadDirPlus(r.cancel, in, list)
		}
		return list.Bytes(), done, status
	case opGetxattr, opListxattr:
		return l.xattr(r, h, body)
	case opStatfs:
		var s fuse.StatfsOut
		status = l.fs.StatFs(r.cancel, &h, &s)
		return structure(&s), nil, status
	case opWrite:
		if short(writeHeader) || uint64(u32(16)) > uint64(len(body)-writeHeader) {
			return nil, nil, fuse.EINVAL
		}
		in := &fuse.WriteIn{InHeader: h, Fh: u64(0), Offset: u64(8), Size: u32(16)}
		n, status := l.fs.Write(r.cancel, in, body[writeHeader:writeHeader+int(in.Size)])
		return written(n), nil, status
	case opFsync:
		if short(16) {
			return nil, nil, fuse.EINVAL
		}
		return nil, nil, l.fs.Fsync(r.cancel, &fuse.FsyncIn{InHeader: h, Fh: u64(0), FsyncFlags: u32(8)})
	case opFallocate:
		if short(32) {
			return nil, nil, fuse.EINVAL
		}
		return nil, nil, l.fs.Fallocate(r.cancel, &fuse.FallocateIn{InHeader: h, Fh: u64(0), Offset: u64(8), Length: u64(16), Mode: u32(24)})
	case opRelease, opFlush, opReleasedir:
		return nil, nil, fuse.OK
	}
	return nil, nil, fuse.ENOSYS
}

// written is struct fuse_write_out.
func written(n uint32) []byte {
	out := make([]byte, 8)
	putUint32(out, n)
	return out
}

// xattr answers with a value or list, or with its size if the caller has no room.
func (l *loop) xattr(r *request, h fuse.InHeader, body []byte) ([]byte, func(), fuse.Status) {
	if len(body) < 8 {
		return nil, nil, fuse.EINVAL
	}
	room := binary.NativeEndian.Uint32(body)
	buf := make([]byte, min(room, 1<<16))
	var n uint32
	var status fuse.Status
	if h.Opcode == opListxattr {
		n, status = l.fs.ListXAttr(r.cancel, &h, buf)
	} else {
		s, err := name(body[8:])
		if err != nil {
			return nil, nil, fuse.EINVAL
		}
		n, status = l.fs.GetXAttr(r.cancel, &h, s, buf)
	}
	if room == 0 && (status == fuse.OK || status == fuse.ERANGE) {
		size := make([]byte, 8) // struct fuse_getxattr_out
		putUint32(size, n)
		return size, nil, fuse.OK
	}
	if status != fuse.OK {
		return nil, nil, status
	}
	return buf[:n], nil, fuse.OK
}

// init answers the first request of a connection's life.
func (l *loop) init(major, minor, readahead uint32) []byte {
	flags := uint64(fuse.CAP_ASYNC_READ | fuse.CAP_MAX_PAGES | fuse.CAP_PARALLEL_DIROPS | fuse.CAP_CACHE_SYMLINKS |
		fuse.CAP_READDIRPLUS | fuse.CAP_READDIRPLUS_AUTO | initExt)
	if l.c.opts.Writable {
		flags |= fuse.CAP_ASYNC_DIO
	}
	if l.c.opts.AnyUser { // identities are the kernel's business, so a mount of ours may be idmapped
		flags |= fuse.CAP_ALLOW_IDMAP | fuse.CAP_POSIX_ACL
	}
	background := l.c.shape.background()
	// No passthrough: EROFS refuses a file of a file system that may be stacked on another.
	o := fuse.InitOut{
		Major: protocolMajor, Minor: min(minor, protocolMinor), MaxReadAhead: min(readahead, maxRequest),
		Flags: uint32(flags), Flags2: uint32(flags >> 32), MaxBackground: background, CongestionThreshold: background / 4 * 3,
		MaxWrite: pageSize, TimeGran: 1, MaxPages: maxRequest / pageSize,
	}
	if l.c.opts.Writable {
		o.MaxWrite = maxWrite
	}
	if major != protocolMajor {
		l.c.opts.Log.Error("FUSE protocol of the kernel is not known", "major", major, "minor", minor)
	}
	return structure(&o)[:initOutLen]
}

// Buffers for reads, by size: most reads are of the same few sizes.
var buffers [21]sync.Pool // of *[]byte with 1<<i bytes

func sizeClass(n int) int {
	class := 12
	for 1<<class < n {
		class++
	}
	return class
}

func takeBuffer(n int) []byte {
	class := sizeClass(n)
	if p, ok := buffers[class].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return make([]byte, n, 1<<class)
}

func giveBuffer(b []byte) {
	b = b[:cap(b)]
	buffers[sizeClass(len(b))].Put(&b)
}
