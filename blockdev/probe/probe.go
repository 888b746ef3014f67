package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/export/fusefile"
	"github.com/remora-storage/remora/blockdev/export/precontent"
	"github.com/remora-storage/remora/blockdev/fusedev"
	"github.com/remora-storage/remora/blockdev/holder"
)

// A Result is what came of trying one way.
type Result struct {
	OK     bool
	Reason string // how long it took, or why it does not work
}

// Results say what works. They were found by doing it.
type Results struct {
	Ways   map[blockdev.Backend]Result
	Direct Result // EROFS on a complete image file itself; by a loop device otherwise
	// IDMapped lists the ways whose mounts can be idmapped, for containers in user namespaces.
	IDMapped map[blockdev.Backend]Result
}

// DirName is the directory that a probe's image holds, FileName the file, of one block of
// FileByte at the image's end.
const (
	DirName  = "probe"
	FileName = "data"
	FileByte = 0x5a
)

// Run mounts a tiny EROFS image in every way that an image may be mounted. dir must lie where
// images will lie.
func Run(dir string, image []byte, log *slog.Logger) (_ Results, err error) {
	work, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return Results{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	p := &prober{
		image: image, file: filepath.Join(work, "image"), on: filepath.Join(work, "on"), served: filepath.Join(work, "fuse"), log: log,
		r: Results{Ways: map[blockdev.Backend]Result{}, IDMapped: map[blockdev.Backend]Result{}},
	}
	if err := os.WriteFile(p.file, image, 0o600); err != nil {
		return Results{}, err
	}
	for _, d := range []string{p.on, p.served} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return Results{}, err
		}
	}
	p.r.Direct = p.try("", func() error { return blockdev.MountEROFS(p.file, p.on) })
	p.r.Ways[blockdev.Precontent] = failed(p.precontent(work))
	if err := p.fuseFiles(); err != nil {
		p.r.Ways[blockdev.FuseFile], p.r.Ways[blockdev.FuseLoop] = failed(err), failed(err)
	}
	p.r.Ways[blockdev.FuseTree] = failed(p.fuseTree())
	return p.r, nil
}

type prober struct {
	image            []byte
	file, on, served string
	log              *slog.Logger
	r                Results
}

// failed makes a Result of a way's error, or of its success.
func failed(err error) Result {
	if err != nil {
		return Result{Reason: err.Error()}
	}
	return Result{OK: true, Reason: "mounted and read"}
}

// try mounts, looks whether the probe's image is there and right, and unmounts.
func (p *prober) try(way blockdev.Backend, mount func() error) Result {
	began := time.Now()
	if err := mount(); err != nil {
		return failed(err)
	}
	defer blockdev.Unmount(p.on) // its directory is removed with the probe's, or the error shows there
	if err := p.look(); err != nil {
		return failed(err)
	}
	if way != "" {
		p.r.IDMapped[way] = failed(tryIDMap(p.on))
	}
	return Result{OK: true, Reason: "mounted and read in " + time.Since(began).Round(time.Microsecond).String()}
}

func (p *prober) look() error {
	st, err := os.Lstat(filepath.Join(p.on, DirName))
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("the image mounted on %s is not the probe's", p.on)
	}
	data, err := os.ReadFile(filepath.Join(p.on, FileName))
	if err != nil {
		return err
	}
	for _, b := range data {
		if b != FileByte {
			return errors.New("the image mounted has other data than the probe's")
		}
	}
	return nil
}

func (p *prober) fuseFiles() error {
	files, err := fusefile.Mount(p.served, fusefile.Options{Log: p.log})
	if err != nil {
		return err
	}
	path := files.Export(fusefile.FirstNode, blockdev.Memory(p.image))
	p.r.Ways[blockdev.FuseFile] = p.try(blockdev.FuseFile, func() error { return blockdev.MountEROFS(path, p.on) })
	p.r.Ways[blockdev.FuseLoop] = p.try(blockdev.FuseLoop, func() error { return blockdev.MountLoop(path, p.on) })
	return files.Unmount()
}

// fuseTree looks only whether FUSE mounts: the tree needs nothing else of the kernel.
func (p *prober) fuseTree() error {
	conn, err := fusedev.Mount(p.served, fusedev.Options{AnyUser: true, Log: p.log})
	if err != nil {
		return err
	}
	tree := fusefile.Tiny() // any file system will do
	if err := conn.Start(tree); err != nil {
		return errors.Join(err, conn.Unmount())
	}
	p.r.IDMapped[blockdev.FuseTree] = failed(tryIDMap(p.served))
	return conn.Unmount()
}

// hole is an image file that misses its last block.
type hole struct {
	f     *os.File
	image []byte
	fills atomic.Int32
}

func (h *hole) Image() *os.File { return h.f }

func (h *hole) Fill(_ context.Context, off, _ int64) error {
	last := int64(len(h.image) - blockSize)
	h.fills.Add(1)
	_, err := h.f.WriteAt(h.image[last:], last)
	return err
}

const blockSize = 4096

// precontent mounts an image whose last block is a hole, and sees that the kernel asks for it.
func (p *prober) precontent(work string) (err error) {
	if len(p.image) < 2*blockSize {
		return errors.New("the probe's image is too small")
	}
	f, err := os.OpenFile(filepath.Join(work, "sparse"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(p.image[:len(p.image)-blockSize], 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(p.image))); err != nil {
		return err
	}
	keeper := holder.NewLocal()
	defer func() { err = errors.Join(err, keeper.Close()) }()
	group, err := precontent.New(keeper, "probe", p.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, group.Close()) }()
	if err := group.Start(); err != nil {
		return err
	}
	h := &hole{f: f, image: p.image}
	if err := group.Mark("probe", h); err != nil {
		return fmt.Errorf("mark a file of this file system: %w", err)
	}
	if r := p.try(blockdev.Precontent, func() error { return blockdev.MountEROFS(f.Name(), p.on) }); !r.OK {
		return errors.New(r.Reason)
	}
	if h.fills.Load() == 0 {
		return errors.New("the kernel read a hole and did not ask for it")
	}
	return nil
}

// tryIDMap makes an idmapped copy of a mount.
func tryIDMap(dir string) error {
	userns, err := userNamespace()
	if err != nil {
		return err
	}
	defer userns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("copy the mount: %w", err)
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fmt.Errorf("idmap the mount: %w", err)
	}
	return nil
}
