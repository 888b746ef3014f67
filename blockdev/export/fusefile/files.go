package fusefile

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/fusedev"
	"github.com/remora-storage/remora/internal/fair"
)

// Files is the directory. A file's name is its node's number in decimal, which its exporter
// chooses: it must mean the same Device as long as the connection lives, whoever serves it.
type Files struct {
	fuse.RawFileSystem
	conn *fusedev.Conn
	log  *slog.Logger

	readers *fair.Pool[uint64] // reads of devices that are not writable, by node
	crowded rate.Sometimes     // says that errCrowd is given

	mu    sync.Mutex // guards the fields below
	files map[uint64]*file
}

// file is a device's file.
type file struct {
	dev blockdev.Device
	// unwritten says that nothing was written to it since it was made. There is nothing to flush then. A device may wait with a flush
	// for its store, and the kernel asks for one while it makes a loop device of a file, with a lock held that all loop devices need.
	unwritten atomic.Bool
}

const (
	rootMode     = 0o500 | unix.S_IFDIR
	fileMode     = 0o400 | unix.S_IFREG
	writeMode    = 0o600 | unix.S_IFREG
	foreverValid = 365 * 24 * time.Hour

	// FirstNode is the least number of a file.
	FirstNode = fuse.FUSE_ROOT_ID + 1
	pollNode  = 1 << 62 // of refusePoll
)

// Options of a directory.
type Options struct {
	Writable bool // the same whoever serves it
	Log      *slog.Logger
}

// Mount mounts an empty directory on dir, which must exist, and serves it. Stop or Unmount must be
// called.
func Mount(dir string, opts Options) (*Files, error) {
	conn, err := fusedev.Mount(dir, fusedev.Options{Writable: opts.Writable, Log: opts.Log})
	if err != nil {
		return nil, err
	}
	f := newFiles(conn, opts.Log)
	if err := f.Start(); err != nil {
		return nil, errors.Join(err, conn.Unmount())
	}
	if err := f.refusePoll(); err != nil {
		return nil, errors.Join(err, conn.Unmount())
	}
	return f, nil
}

// Adopt takes over a directory that an earlier process mounted. It serves nothing before Start:
// the caller exports again first what was exported then.
func Adopt(dir string, kept []*os.File, opts Options) (*Files, error) {
	conn, err := fusedev.Adopt(dir, kept, fusedev.Options{Writable: opts.Writable, Log: opts.Log})
	if err != nil {
		return nil, err
	}
	return newFiles(conn, opts.Log), nil
}

func newFiles(conn *fusedev.Conn, log *slog.Logger) *Files {
	// The kernel lets so many reads ahead be under way, of all files together.
	n := conn.Background()
	return &Files{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), conn: conn, log: log, files: map[uint64]*file{},
		readers: fair.NewPool[uint64](n, n/2), crowded: rate.Sometimes{First: 1, Interval: 10 * time.Second},
	}
}

// errCrowd is what a reader gets whose file has more reads that wait than its share: with more, files that do answer would have
// none.
var errCrowd = errors.New("too many reads of it wait")

// Start serves an adopted directory.
func (f *Files) Start() error { return f.conn.Start(f) }

// Kept returns what another process must keep for Adopt.
func (f *Files) Kept() []*os.File { return f.conn.Files() }

// Stop leaves the directory mounted for the next process, its readers waiting.
func (f *Files) Stop() error { return f.conn.Stop() }

// Unmount ends the directory. Whatever the kernel has mounted on a file fails from now on.
func (f *Files) Unmount() error { return f.conn.Unmount() }

// refusePoll makes the kernel ask us once whether we support poll(2), from a system call that
// the Go runtime knows to block. Otherwise it would ask when this process itself opens one of the
// files (to set up a loop device, say): os.Open hands the descriptor to epoll by a call that the
// runtime believes to be short, and with all processors in such calls nobody is left to answer.
func (f *Files) refusePoll() error {
	path := f.Export(pollNode, blockdev.Memory([]byte{0}))
	defer f.Withdraw(pollNode)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		return &os.PathError{Op: "poll", Path: path, Err: err}
	}
	return nil
}

// Path returns the path of a node's file.
func (f *Files) Path(node uint64) string { return Path(f.conn.Dir(), node) }

// Path returns the path of a node's file in a directory that is mounted on dir.
func Path(dir string, node uint64) string {
	return filepath.Join(dir, strconv.FormatUint(node, 10))
}

// Export adds a file for a device, or gives the file another device, and returns its path.
func (f *Files) Export(node uint64, dev blockdev.Device) (path string) {
	return f.add(node, &file{dev: dev})
}

// Make adds a file that nobody has opened yet, and returns its path.
func (f *Files) Make(node uint64, dev blockdev.Device) (path string) {
	made := &file{dev: dev}
	made.unwritten.Store(true)
	return f.add(node, made)
}

func (f *Files) add(node uint64, added *file) (path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[node] = added
	return f.Path(node)
}

// Withdraw removes a node's file. The kernel may go on using it where it is open; reads then
// fail.
func (f *Files) Withdraw(node uint64) {
	f.mu.Lock()
	delete(f.files, node)
	f.mu.Unlock()
	f.conn.Forget(fuse.FUSE_ROOT_ID, strconv.FormatUint(node, 10))
}

func (f *Files) device(node uint64) blockdev.Device {
	if found := f.file(node); found != nil {
		return found.dev
	}
	return nil
}

func (f *Files) file(node uint64) *file {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.files[node]
}

func (f *Files) String() string { return "remora" }

// Lookup finds a device's file by its number.
func (f *Files) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	node, err := strconv.ParseUint(name, 10, 64)
	if h.NodeId != fuse.FUSE_ROOT_ID || err != nil {
		return fuse.ENOENT
	}
	dev := f.device(node)
	if dev == nil {
		return fuse.ENOENT
	}
	out.NodeId, out.Generation = node, 1
	out.SetEntryTimeout(foreverValid)
	out.SetAttrTimeout(foreverValid)
	if _, ok := dev.(blockdev.Writer); ok {
		out.SetAttrTimeout(0) // it may grow
	}
	fileAttr(&out.Attr, node, dev)
	return fuse.OK
}

// GetAttr describes the directory or a device's file.
func (f *Files) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(foreverValid)
	if in.NodeId == fuse.FUSE_ROOT_ID {
		out.Ino, out.Mode, out.Nlink = fuse.FUSE_ROOT_ID, rootMode, 2
		return fuse.OK
	}
	dev := f.device(in.NodeId)
	if dev == nil {
		return fuse.ENOENT
	}
	if _, ok := dev.(blockdev.Writer); ok {
		out.SetTimeout(0) // it may grow
	}
	fileAttr(&out.Attr, in.NodeId, dev)
	return fuse.OK
}

func fileAttr(a *fuse.Attr, node uint64, dev blockdev.Device) {
	a.Ino, a.Mode, a.Nlink, a.Size, a.Blksize = node, fileMode, 1, uint64(dev.Size()), 4096
	if _, ok := dev.(blockdev.Writer); ok {
		a.Mode = writeMode
	}
	a.Blocks = (a.Size + 511) / 512
}

// An Exact device wants to be asked for what is read and for nothing else: the kernel neither keeps its
// bytes nor reads ahead on its file. What lies on top reads ahead and keeps by itself.
type Exact interface{ Exact() }

// Open lets the kernel keep what it has cached of a device that cannot be written to: its bytes never change. Of
// one that can it keeps nothing: what lies on top does, and a write that was only cached here would be neither lost
// nor kept by the rules of a disk.
func (f *Files) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	dev := f.device(in.NodeId)
	if dev == nil {
		return fuse.ENOENT
	}
	_, writer := dev.(blockdev.Writer)
	if !writer && in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return fuse.EROFS
	}
	out.OpenFlags = noFlush | fuse.FOPEN_KEEP_CACHE
	if writer {
		out.OpenFlags = noFlush | fuse.FOPEN_DIRECT_IO | parallelWrites
	} else if _, exact := dev.(Exact); exact {
		out.OpenFlags = noFlush | fuse.FOPEN_DIRECT_IO
	}
	return fuse.OK
}

// Flags of <linux/fuse.h>.
const (
	noFlush        = 1 << 5 // FOPEN_NOFLUSH: closing asks nothing, so that a process can end while nobody serves
	parallelWrites = 1 << 6 // FOPEN_PARALLEL_DIRECT_WRITES: writes to one file need not wait for each other
)

// Read reads from the device. An interrupted reader leaves at once.
func (f *Files) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	dev := f.device(in.NodeId)
	if dev == nil {
		return nil, fuse.EIO
	}
	if _, writer := dev.(blockdev.Writer); !writer { // a disk's loop device has few requests
		release, ok := f.readers.Try(in.NodeId)
		if !ok {
			f.crowded.Do(func() { f.log.Error("reads denied", "file", in.NodeId, "err", errCrowd) })
			return nil, fuse.EIO
		}
		defer release()
	}
	ctx := blockdev.WithCaller(&fuse.Context{Caller: in.Caller, Cancel: cancel}, int(in.Pid))
	n, err := dev.ReadAt(ctx, buf[:min(len(buf), int(in.Size))], int64(in.Offset))
	if err != nil {
		errno := blockdev.Errno(err)
		if errno != unix.EINTR {
			f.log.Error("read failed", "off", in.Offset, "len", in.Size, "err", err)
		}
		return nil, fuse.Status(errno)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write writes to the device.
func (f *Files) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	w, ctx, status := f.writer(cancel, &in.InHeader)
	if status != fuse.OK {
		return 0, status
	}
	if err := w.WriteAt(ctx, data, int64(in.Offset)); err != nil {
		return 0, f.failed("write", in.Offset, uint64(len(data)), err)
	}
	return uint32(len(data)), fuse.OK
}

// Fsync flushes the device. It must never be ENOSYS, which the kernel takes for success from then on.
func (f *Files) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if of := f.file(in.NodeId); of != nil && of.unwritten.Load() {
		return fuse.OK
	}
	w, ctx, status := f.writer(cancel, &in.InHeader)
	if status == fuse.EROFS {
		return fuse.OK // nothing was written
	}
	if status != fuse.OK {
		return status
	}
	if err := w.Flush(ctx); err != nil {
		return f.failed("flush", 0, 0, err)
	}
	return fuse.OK
}

// Fallocate punches holes and writes zeros.
func (f *Files) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	w, ctx, status := f.writer(cancel, &in.InHeader)
	if status != fuse.OK {
		return status
	}
	var how blockdev.Zeroing
	switch in.Mode {
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
	case unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		how.NoHole = true
	default:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if err := blockdev.WriteZeroes(ctx, w, int64(in.Offset), int64(in.Length), how); err != nil {
		return f.failed("write zeros", in.Offset, in.Length, err)
	}
	return fuse.OK
}

// writer finds the device that a request changes.
func (f *Files) writer(cancel <-chan struct{}, h *fuse.InHeader) (blockdev.Writer, context.Context, fuse.Status) {
	of := f.file(h.NodeId)
	if of == nil {
		return nil, nil, fuse.EIO
	}
	w, ok := of.dev.(blockdev.Writer)
	if !ok {
		return nil, nil, fuse.EROFS
	}
	if of.unwritten.Load() {
		of.unwritten.Store(false)
	}
	return w, &fuse.Context{Caller: h.Caller, Cancel: cancel}, fuse.OK
}

// failed logs a change that failed and says what its caller is told.
func (f *Files) failed(what string, off, n uint64, err error) fuse.Status {
	errno := blockdev.Errno(err)
	if errno != unix.EINTR {
		f.log.Error(what+" failed", "off", off, "len", n, "err", err)
	}
	return fuse.Status(errno)
}

// OpenDir and ReadDir let the directory be opened.
func (f *Files) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// ReadDir lists nothing: files are found by name.
func (f *Files) ReadDir(<-chan struct{}, *fuse.ReadIn, *fuse.DirEntryList) fuse.Status {
	return fuse.OK
}

// ReadDirPlus lists nothing either.
func (f *Files) ReadDirPlus(<-chan struct{}, *fuse.ReadIn, *fuse.DirEntryList) fuse.Status {
	return fuse.OK
}

// StatFs gives the zero answer.
func (f *Files) StatFs(<-chan struct{}, *fuse.InHeader, *fuse.StatfsOut) fuse.Status {
	return fuse.OK
}

// Tiny returns a file system with an empty root directory.
func Tiny() fuse.RawFileSystem {
	return &Files{RawFileSystem: fuse.NewDefaultRawFileSystem(), log: slog.New(slog.DiscardHandler)}
}
