package testbed

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Mounted mounts a device until the test ends. umount ends it before.
func Mounted(t *testing.T, dev, fstype string) (dir string, umount func()) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "mnt")
	Must(t, os.Mkdir(dir, 0o700))
	Must(t, unix.Mount(dev, dir, fstype, 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	return dir, func() {
		t.Helper()
		Unmount(t, dir)
	}
}

// SyncFS flushes one file system. Others may wait for a node that is stopped.
func SyncFS(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	Must(t, err)
	defer f.Close()
	Must(t, unix.Syncfs(int(f.Fd())))
}

// A FileSystem is a file system with those who judge it.
type FileSystem struct {
	Name  string
	Make  []string // before the device
	Check []string // changes nothing
}

// FileSystems are those that disks and volumes are tried with; the first is ext4.
var FileSystems = []FileSystem{
	{"ext4", []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-f", "-n"}},
	{"xfs", []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}},
	{"btrfs", []string{"mkfs.btrfs", "-q", "-f"}, []string{"btrfs", "check", "--readonly"}},
}

// Mkfs makes the file system on a device.
func (fs FileSystem) Mkfs(t *testing.T, dev string) {
	t.Helper()
	Tool(t, fs.Make[0], append(fs.Make[1:len(fs.Make):len(fs.Make)], dev)...)
}

// Clean insists that a device's file system has no fault, without changing it.
func (fs FileSystem) Clean(t *testing.T, dev string) {
	t.Helper()
	Tool(t, fs.Check[0], append(fs.Check[1:len(fs.Check):len(fs.Check)], dev)...)
}
