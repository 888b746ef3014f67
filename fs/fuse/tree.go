package fuse

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/fs/erofs"
	"github.com/remora-storage/remora/fs/layout"
)

// Data gives the bytes of a layer's image. Its contract is blockdev.Device's.
type Data interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// Trees is a file system with a directory for each layer, whose name is the layer's number in
// decimal.
type Trees struct {
	fuse.RawFileSystem
	log *slog.Logger

	mu     sync.Mutex // guards layers
	layers map[uint32]*tree
}

type tree struct {
	*erofs.Reader
	data Data
}

// A node's number is the layer's above the inode's place. The file system's own root is 1, so no
// layer's number may be 0.
const (
	layerShift   = 32
	foreverValid = 365 * 24 * time.Hour
	rootMode     = 0o755 | unix.S_IFDIR
)

// NewTrees returns a file system without layers.
func NewTrees(log *slog.Logger) *Trees {
	return &Trees{RawFileSystem: fuse.NewDefaultRawFileSystem(), log: log, layers: map[uint32]*tree{}}
}

// Add shows a layer whose image has size bytes of metadata. The number must mean the same layer as
// long as the file system is mounted, whoever serves it.
func (t *Trees) Add(number uint32, meta io.ReaderAt, size int64, data Data) error {
	r, err := erofs.NewReader(meta, size)
	if err != nil {
		return fmt.Errorf("show the tree of layer %d: %w", number, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.layers[number] = &tree{r, data}
	return nil
}

// Remove hides a layer.
func (t *Trees) Remove(number uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.layers, number)
}

func (t *Trees) String() string { return "remora" }

// find returns a node's layer and inode.
func (t *Trees) find(node uint64) (layer *tree, number uint32, n *erofs.Node, status fuse.Status) {
	number = uint32(node >> layerShift)
	t.mu.Lock()
	layer = t.layers[number]
	t.mu.Unlock()
	if layer == nil {
		return nil, 0, nil, fuse.Status(unix.ESTALE)
	}
	n, err := layer.Node(node & (1<<layerShift - 1))
	return layer, number, n, t.status(err)
}

func (t *Trees) status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno := blockdev.Errno(err)
	if errno != unix.EINTR {
		t.log.Error("read failed", "err", err)
	}
	return fuse.Status(errno)
}

func nodeOf(layer uint32, nid uint64) uint64 { return uint64(layer)<<layerShift | nid }

// Lookup implements fuse.RawFileSystem.
func (t *Trees) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId == fuse.FUSE_ROOT_ID {
		number, err := strconv.ParseUint(name, 10, 32)
		if err != nil || number == 0 {
			return fuse.ENOENT
		}
		t.mu.Lock()
		layer := t.layers[uint32(number)]
		t.mu.Unlock()
		if layer == nil {
			return fuse.ENOENT
		}
		return t.entry(layer, uint32(number), layer.Root(), out)
	}
	layer, number, n, status := t.find(h.NodeId)
	if status != fuse.OK {
		return status
	}
	e, found, err := layer.Lookup(n, name)
	if err != nil {
		return t.status(err)
	}
	if !found {
		// The tree never changes: the kernel may remember that there is nothing.
		*out = fuse.EntryOut{}
		out.SetEntryTimeout(foreverValid)
		return fuse.OK
	}
	return t.entry(layer, number, e.NID, out)
}

func (t *Trees) entry(layer *tree, number uint32, nid uint64, out *fuse.EntryOut) fuse.Status {
	n, err := layer.Node(nid)
	if err != nil {
		return t.status(err)
	}
	out.NodeId, out.Generation = nodeOf(number, nid), 1
	out.SetEntryTimeout(foreverValid)
	out.SetAttrTimeout(foreverValid)
	fillAttr(&out.Attr, number, n)
	return fuse.OK
}

func fillAttr(a *fuse.Attr, number uint32, n *erofs.Node) {
	a.Ino, a.Mode, a.Nlink, a.Size = nodeOf(number, n.NID), n.Mode, n.Nlink, uint64(n.Size)
	a.Uid, a.Gid, a.Rdev, a.Blksize, a.Blocks = n.UID, n.GID, n.Rdev, erofs.BlockSize, uint64(n.Size+511)/512
	a.Atime, a.Mtime, a.Ctime = uint64(n.MtimeSec), uint64(n.MtimeSec), uint64(n.MtimeSec)
	a.Atimensec, a.Mtimensec, a.Ctimensec = n.MtimeNsec, n.MtimeNsec, n.MtimeNsec
}

// GetAttr implements fuse.RawFileSystem.
func (t *Trees) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(foreverValid)
	if in.NodeId == fuse.FUSE_ROOT_ID {
		out.Ino, out.Mode, out.Nlink = fuse.FUSE_ROOT_ID, rootMode, 2
		return fuse.OK
	}
	_, number, n, status := t.find(in.NodeId)
	if status == fuse.OK {
		fillAttr(&out.Attr, number, n)
	}
	return status
}

// Readlink implements fuse.RawFileSystem.
func (t *Trees) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	layer, _, n, status := t.find(h.NodeId)
	if status != fuse.OK {
		return nil, status
	}
	target, err := layer.Link(n)
	return []byte(target), t.status(err)
}

// Open lets the kernel keep what it has cached: a layer's bytes never change.
func (t *Trees) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return fuse.EROFS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// Read implements fuse.RawFileSystem. An interrupted reader leaves at once.
func (t *Trees) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	layer, _, n, status := t.find(in.NodeId)
	if status != fuse.OK {
		return nil, status
	}
	if in.Offset >= uint64(n.Size) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	size := min(int64(in.Size), int64(len(buf)), n.Size-int64(in.Offset))
	ctx := blockdev.WithCaller(&fuse.Context{Caller: in.Caller, Cancel: cancel}, int(in.Pid))
	got, err := layer.data.ReadAt(ctx, buf[:size], n.Data+int64(in.Offset))
	if err != nil {
		return nil, t.status(err)
	}
	return fuse.ReadResultData(buf[:got]), fuse.OK
}

// OpenDir lets the kernel keep directories.
func (t *Trees) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// ReadDir implements fuse.RawFileSystem. Layers are found by name alone.
func (t *Trees) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.readDir(in, func(_ *tree, number uint32, e erofs.DirEntry) bool {
		return out.AddDirEntry(dirEntry(number, e))
	})
}

// ReadDirPlus implements fuse.RawFileSystem.
func (t *Trees) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.readDir(in, func(layer *tree, number uint32, e erofs.DirEntry) bool {
		entry := out.AddDirLookupEntry(dirEntry(number, e))
		if entry == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." {
			// On an error the kernel looks the name up, and sees it then.
			_ = t.entry(layer, number, e.NID, entry)
		}
		return true
	})
}

func (t *Trees) readDir(in *fuse.ReadIn, add func(*tree, uint32, erofs.DirEntry) bool) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return fuse.OK
	}
	layer, number, n, status := t.find(in.NodeId)
	if status != fuse.OK {
		return status
	}
	return t.status(layer.ReadDir(n, in.Offset, func(e erofs.DirEntry) bool { return add(layer, number, e) }))
}

func dirEntry(number uint32, e erofs.DirEntry) fuse.DirEntry {
	return fuse.DirEntry{Name: e.Name, Ino: nodeOf(number, e.NID), Mode: erofs.Mode(e.Type), Off: e.Next}
}

// xattrs returns a node's extended attributes. The root has none.
func (t *Trees) xattrs(node uint64) ([]layout.Xattr, fuse.Status) {
	if node == fuse.FUSE_ROOT_ID {
		return nil, fuse.OK
	}
	layer, _, n, status := t.find(node)
	if status != fuse.OK {
		return nil, status
	}
	all, err := layer.Xattrs(n)
	return all, t.status(err)
}

// GetXAttr implements fuse.RawFileSystem.
func (t *Trees) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	all, status := t.xattrs(h.NodeId)
	if status != fuse.OK {
		return 0, status
	}
	for _, x := range all {
		if x.Name != name {
			continue
		}
		if len(x.Value) > len(dest) {
			return uint32(len(x.Value)), fuse.ERANGE
		}
		return uint32(copy(dest, x.Value)), fuse.OK
	}
	return 0, fuse.ENOATTR
}

// ListXAttr implements fuse.RawFileSystem.
func (t *Trees) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	all, status := t.xattrs(h.NodeId)
	if status != fuse.OK {
		return 0, status
	}
	var list []byte
	for _, x := range all {
		list = append(append(list, x.Name...), 0)
	}
	if len(list) > len(dest) {
		return uint32(len(list)), fuse.ERANGE
	}
	return uint32(copy(dest, list)), fuse.OK
}

// StatFs implements fuse.RawFileSystem.
func (t *Trees) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = erofs.BlockSize, erofs.BlockSize, 255
	return fuse.OK
}
