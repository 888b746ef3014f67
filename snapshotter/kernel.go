package snapshotter

import (
	"errors"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/autofs"
	"github.com/remora-storage/remora/blockdev/export/plain"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// A Kernel is what a Snapshotter asks of the machine itself: what is mounted, and mounts that need no
// process of ours. All methods are safe for concurrent use.
type Kernel interface {
	// Probe finds out how layers whose images lie in dir can be mounted; see the function Probe.
	Probe(dir string, pinned blockdev.Backend, safe bool) (Capabilities, error)
	// TryUpper reports why overlayfs cannot write to directories in dir, or nil.
	TryUpper(dir string) error
	// MountImage mounts a complete image file on dir: as it is, or by a loop device.
	MountImage(path, dir string, loop bool) error
	// Unmount takes away everything that is mounted on dir, now or when its last user goes. A dir on
	// which nothing is mounted is no error.
	Unmount(dir string) error
	// UnmountUnused takes away what is mounted on dir and not in use; EBUSY says that something is.
	UnmountUnused(dir string) error
	// Gates has whoever enters a directory wait until answer returns, which mounts something there or says why it cannot. It
	// fails where the kernel has nothing of the kind.
	Gates(answer func(dir string) error) (Gates, error)
	// Bind shows a directory, or what is mounted on it, on another one, too.
	Bind(from, to string) error
	// LoopFile returns the file that a loop device is set up on, "" if that is not known.
	LoopFile(dev string) string
	// Own returns the mounts of this process's namespace, the oldest first.
	Own() ([]mounts.Mount, error)
	// Everywhere calls use with every mount of every mount namespace that has a process.
	Everywhere(use func(n mounts.Namespace, m mounts.Mount)) error
}

// Gates are directories that nobody enters before a layer is mounted there: see autofs.Server.
type Gates interface {
	Mount(dir string) error
	// Quiet lets those go who wait at a gate that an earlier process has left: they fail.
	Quiet(m mounts.Mount) error
	Close() error
}

// machine is the Kernel that this process runs on.
type machine struct{ log *slog.Logger }

func (k machine) Probe(dir string, pinned blockdev.Backend, safe bool) (Capabilities, error) {
	return Probe(dir, pinned, safe, k.log)
}

func (machine) LoopFile(dev string) string {
	file, _ := blockdev.LoopFileOf(dev) // what is not known counts as ours
	return file
}

func (machine) TryUpper(dir string) error { return tryUpper(dir) }

func (machine) MountImage(path, dir string, loop bool) error {
	return plain.Mount(path, dir, loop)
}

func (machine) Unmount(dir string) error { return blockdev.Unmount(dir) }

func (machine) UnmountUnused(dir string) error {
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (machine) Bind(from, to string) error { return unix.Mount(from, to, "", unix.MS_BIND, "") }

func (k machine) Gates(answer func(dir string) error) (Gates, error) {
	return autofs.New(answer, k.log)
}

func (machine) Own() ([]mounts.Mount, error) { return mounts.Own() }

func (machine) Everywhere(use func(mounts.Namespace, mounts.Mount)) error {
	return mounts.Everywhere(use)
}
