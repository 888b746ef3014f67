package blockdev

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// MountEROFS mounts an image, a file or a block device, read-only on dir. It calls mount(2),
// since mount(8) may put a loop device between on its own.
func MountEROFS(source, dir string) error {
	err := unix.Mount(source, dir, "erofs", unix.MS_RDONLY|unix.MS_NODEV, "")
	if errors.Is(err, unix.EOPNOTSUPP) { // an EROFS without xattrs or ACLs refuses nothing else
		err = unix.Mount(source, dir, "erofs", unix.MS_RDONLY|unix.MS_NODEV, "noacl")
	}
	if err != nil {
		return &os.PathError{Op: "mount erofs " + source + " on", Path: dir, Err: err}
	}
	return nil
}

// Unmount takes away everything that is mounted on dir, at once or when its last user goes.
func Unmount(dir string) error {
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // nothing is mounted there
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: dir, Err: err}
		}
	}
}

// FreshDir makes a directory for a mount, after taking away what a dead process left on it.
func FreshDir(dir string) error {
	if err := Unmount(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

// MountLoop mounts an image by a loop device.
func MountLoop(source, dir string) error {
	l, err := AttachLoop(source)
	if err != nil {
		return err
	}
	defer l.Release() // the mount holds the device now
	return MountEROFS(l.Path(), dir)
}
