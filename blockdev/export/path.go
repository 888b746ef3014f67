package export

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
)

// A Path is where the kernel finds an export.
type Path interface {
	// String is the path of a file, a block device or a directory.
	String() string

	// Mount shows the file system that the export holds, or is, read-only on dir.
	Mount(dir string) error

	// Release says that the caller has used the path, by mounting it, say, and that the use alone keeps it from now on.
	Release() error
}

// A File is a Path that is a file of an EROFS image, whose reads cost more than those of a local file.
type File string

func (p File) String() string { return string(p) }

// Mount implements Path.
func (p File) Mount(dir string) error { return blockdev.MountLazyEROFS(string(p), dir) }

// Release implements Path.
func (File) Release() error { return nil }

// A Tree is a Path that is a directory of a mounted file system.
type Tree string

func (p Tree) String() string { return string(p) }

// Mount implements Path.
func (p Tree) Mount(dir string) error {
	if err := unix.Mount(string(p), dir, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind " + string(p) + " on", Path: dir, Err: err}
	}
	return nil
}

// Release implements Path.
func (Tree) Release() error { return nil }
