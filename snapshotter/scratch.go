package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/internal/durable"
)

// Overlayfs cannot write to a directory that is itself on overlayfs. Where --root is on one (a
// container, say), snapshots lie on an ext4 file system in a sparse file there, by a loop device:
// slower, and bounded by the size that the file was made with.
const (
	scratchFile   = "scratch.ext4"
	scratchShare  = 2 // the file is half as large as the file system that it is on
	smallestShare = 64 << 20
)

// prepareScratch makes the snapshots' directory fit for overlay mounts. mounted says that it has
// its scratch file system from an earlier life, which containers may be using.
func (s *Snapshotter) prepareScratch(mounted bool) error {
	if mounted {
		return nil
	}
	reason := s.kernel.TryUpper(s.snapshotsDir())
	if reason == nil {
		return nil
	}
	path := filepath.Join(s.root, scratchFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := makeScratch(path, s.root); err != nil {
			return fmt.Errorf("%w; a file system of our own instead: %w", reason, err)
		}
	}
	if err := mountScratch(path, s.snapshotsDir()); err != nil {
		return fmt.Errorf("mount %s on %s: %w", path, s.snapshotsDir(), err)
	}
	s.log.Warn("snapshots lie on a file system of our own: put --root on ext4, xfs or btrfs for speed", "file", path, "reason", reason)
	return nil
}

// mountScratch mounts a scratch file. A mount namespace that has a copy of an earlier mount keeps the file system alive: it
// is mounted from the same device then, since by another one the file would have two writers.
func mountScratch(path, dir string) error {
	dev, err := blockdev.FindLoop(path)
	if err != nil {
		return err
	}
	if dev != "" {
		err := unix.Mount(dev, dir, "ext4", unix.MS_NODEV, "")
		if err == nil {
			return nil
		}
		if still, ferr := blockdev.FindLoop(path); ferr != nil || still != "" { // else it ended just now
			return errors.Join(err, ferr)
		}
	}
	l, err := blockdev.AttachLoopOn(path, blockdev.LoopOptions{Writable: true})
	if err != nil {
		return err
	}
	defer l.Release() // the mount holds the device
	return unix.Mount(l.Path(), dir, "ext4", unix.MS_NODEV, "")
}

// tryUpper mounts an overlay whose upper directory lies in dir.
func tryUpper(dir string) error {
	work, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	for _, d := range []string{"lower", "upper", "work", "on"} {
		if err := os.Mkdir(filepath.Join(work, d), 0o700); err != nil {
			return err
		}
	}
	on := filepath.Join(work, "on")
	opts := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", work)
	if err := unix.Mount("overlay", on, "overlay", 0, opts); err != nil {
		return fmt.Errorf("overlayfs cannot write to %s: %w", dir, err)
	}
	return blockdev.Unmount(on)
}

func makeScratch(path, root string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return err
	}
	size := max(int64(st.Blocks)*st.Bsize/scratchShare, smallestShare)
	making := path + ".new"
	f, err := os.Create(making)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(size), f.Close())
	if err != nil {
		return err
	}
	mkfs := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", making)
	if out, err := mkfs.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4 %s: %w\n%s", making, err, out)
	}
	return durable.Rename(making, path)
}

// releaseScratch unmounts the scratch file system if nothing uses it. It is never detached while
// in use: a second mount of the same file would destroy it.
func (s *Snapshotter) releaseScratch() error {
	if _, err := os.Stat(filepath.Join(s.root, scratchFile)); err != nil {
		return nil
	}
	err := unix.Unmount(s.snapshotsDir(), unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}
