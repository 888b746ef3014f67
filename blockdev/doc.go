// Package blockdev is the wall between our engines and the kernel: a Device is bytes by offset,
// and an export makes a path of it that the kernel can mount.
//
// Belongs here: the Device contract, the names of the back ends, loop devices, mounting; in packages below,
// each export, what keeps exports alive, and finding out what this kernel can do by doing it.
// Does not: where bytes come from (cache, volume), which snapshot needs what (snapshotter).
package blockdev

import "context"

// A Device is a fixed number of bytes that can be read at any offset.
type Device interface {
	// ReadAt fills p from off and returns how many bytes it read: fewer than len(p) only at
	// the end, where the error is nil. It is safe for concurrent use and returns soon after
	// ctx ends. Bytes that it returns are right; where it cannot have them it fails.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)

	// Size returns the number of bytes. It never changes.
	Size() int64
}

// A Backend is a way in which the kernel mounts an incomplete image.
type Backend string

// The back ends.
const (
	Precontent Backend = "precontent" // EROFS on the image file itself, filled by fanotify pre-content events
	FuseFile   Backend = "fuse-file"  // EROFS on a FUSE-served file
	FuseLoop   Backend = "fuse-loop"  // EROFS on a loop device on a FUSE-served file
	FuseTree   Backend = "fuse-tree"  // the tree itself served by FUSE, without EROFS
)

// Backends lists all.
var Backends = []Backend{Precontent, FuseFile, FuseLoop, FuseTree}
