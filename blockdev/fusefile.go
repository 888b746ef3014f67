package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FuseFiles is a directory, served by FUSE, that holds a read-only file for each exported
// Device. The kernel mounts a file system on such a file, or sets a loop device up on it.
type FuseFiles struct {
	fuse.RawFileSystem
	dir    string
	server *fuse.Server
	log    *slog.Logger
	served chan struct{} // closed when the server has ended

	connection uint32 // the kernel's number for it

	mu    sync.Mutex // guards the fields below
	files map[uint64]Device
	next  uint64
}

const (
	fuseRequest   = 1 << 20 // bytes of the largest read
	fuseRootMode  = 0o500 | unix.S_IFDIR
	fuseFileMode  = 0o400 | unix.S_IFREG
	foreverValid  = 365 * 24 * time.Hour
	maxBackground = 64
)

// ServeFiles mounts an empty FuseFiles on dir, which must exist. Close must be called.
func ServeFiles(dir string, log *slog.Logger) (*FuseFiles, error) {
	// We open and mount the connection ourselves: a descriptor that a child process inherits
	// would keep readers hanging after our death, when they should fail.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w (is the fuse module loaded?)", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d", fd, fuseRequest)
	if err := unix.Mount("remora", dir, "fuse.remora", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount FUSE on %s: %w", dir, err)
	}
	f := &FuseFiles{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), dir: dir, log: log,
		files: map[uint64]Device{}, next: fuse.FUSE_ROOT_ID + 1, served: make(chan struct{}),
	}
	f.server, err = fuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		MaxWrite: fuseRequest, MaxReadAhead: fuseRequest, MaxBackground: maxBackground, DisableXAttrs: true, DisableReadDirPlus: true,
		// EROFS refuses a file of a stacked file system, which passthrough would make of us.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
	})
	if err != nil {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // the error that matters is err
		unix.Close(fd)
		return nil, fmt.Errorf("serve FUSE on %s: %w", dir, err)
	}
	go func() {
		defer close(f.served)
		f.server.Serve()
	}()
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat FUSE mount %s: %w", dir, err), f.Close())
	}
	f.connection = unix.Minor(st.Dev)
	if err := f.refusePoll(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// refusePoll makes the kernel ask us once whether we support poll(2), from a system call that
// the Go runtime knows to block. Otherwise it would ask when this process itself opens one of the
// files (to set up a loop device, say): os.Open hands the descriptor to epoll by a call that the
// runtime believes to be short, and with all processors in such calls nobody is left to answer.
func (f *FuseFiles) refusePoll() error {
	path, err := f.Export(bytesDevice{0})
	if err != nil {
		return err
	}
	defer f.Withdraw(path)
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

// Close unmounts. Whatever the kernel has mounted on a file fails from now on.
func (f *FuseFiles) Close() error {
	// Detached rather than unmounted: a mount on one of the files must not keep us here.
	if err := unix.Unmount(f.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", f.dir, err)
	}
	select {
	case <-f.served:
		return nil
	case <-time.After(100 * time.Millisecond):
	}
	// Somebody still uses a file. Ending the connection fails them now instead of never.
	abort := fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", f.connection)
	if err := os.WriteFile(abort, []byte("1"), 0); err != nil {
		f.log.Info("FUSE connection stays until the process ends", "err", err)
		return nil
	}
	<-f.served
	return nil
}

// Export adds a file for a device and returns its path.
func (f *FuseFiles) Export(dev Device) (path string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	node := f.next
	f.next++
	f.files[node] = dev
	return filepath.Join(f.dir, strconv.FormatUint(node, 10)), nil
}

// Withdraw removes a file that Export returned. The kernel may go on using it where it is
// open; reads then fail.
func (f *FuseFiles) Withdraw(path string) {
	node, err := strconv.ParseUint(filepath.Base(path), 10, 64)
	if err != nil {
		return
	}
	f.mu.Lock()
	delete(f.files, node)
	f.mu.Unlock()
	f.server.EntryNotify(fuse.FUSE_ROOT_ID, filepath.Base(path)) // ENOENT if the kernel has not seen it
}

func (f *FuseFiles) device(node uint64) Device {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.files[node]
}

func (f *FuseFiles) String() string { return "remora" }

// Lookup finds a device's file by its number.
func (f *FuseFiles) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
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
	fileAttr(&out.Attr, node, dev)
	return fuse.OK
}

// GetAttr describes the directory or a device's file.
func (f *FuseFiles) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(foreverValid)
	if in.NodeId == fuse.FUSE_ROOT_ID {
		out.Ino, out.Mode, out.Nlink = fuse.FUSE_ROOT_ID, fuseRootMode, 2
		return fuse.OK
	}
	dev := f.device(in.NodeId)
	if dev == nil {
		return fuse.ENOENT
	}
	fileAttr(&out.Attr, in.NodeId, dev)
	return fuse.OK
}

func fileAttr(a *fuse.Attr, node uint64, dev Device) {
	a.Ino, a.Mode, a.Nlink, a.Size, a.Blksize = node, fuseFileMode, 1, uint64(dev.Size()), 4096
	a.Blocks = (a.Size + 511) / 512
}

// Open lets the kernel keep what it has cached: a device's bytes never change.
func (f *FuseFiles) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if f.device(in.NodeId) == nil {
		return fuse.ENOENT
	}
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return fuse.EROFS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// Read reads from the device. An interrupted reader leaves at once.
func (f *FuseFiles) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	dev := f.device(in.NodeId)
	if dev == nil {
		return nil, fuse.EIO
	}
	ctx := &fuse.Context{Caller: in.Caller, Cancel: cancel}
	n, err := dev.ReadAt(ctx, buf[:min(len(buf), int(in.Size))], int64(in.Offset))
	if err != nil {
		f.log.Error("read failed", "off", in.Offset, "len", in.Size, "err", err)
		return nil, fuse.Status(Errno(err))
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// OpenDir and ReadDir show the files' numbers.
func (f *FuseFiles) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// ReadDir lists nothing: files are found by name.
func (f *FuseFiles) ReadDir(<-chan struct{}, *fuse.ReadIn, *fuse.DirEntryList) fuse.Status {
	return fuse.OK
}

// StatFs gives the zero answer.
func (f *FuseFiles) StatFs(<-chan struct{}, *fuse.InHeader, *fuse.StatfsOut) fuse.Status {
	return fuse.OK
}

// Errno is what a reader sees of an error: that of the system if there is one, EINTR if it was
// told to leave, EIO otherwise.
func Errno(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return unix.EINTR
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, os.ErrClosed):
		return unix.EIO
	case errors.As(err, &errno) && (errno == unix.ENOSPC || errno == unix.ENOMEM):
		return errno
	}
	return unix.EIO
}
