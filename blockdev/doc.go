// Package blockdev is the wall between our engines and the kernel. A Device is bytes by offset. An export makes a
// path of it that the kernel can mount, or a socket that clients speak NBD to.
//
// Belongs here: the Device contract, devices that are a file or memory, wrappers of one duty each, the names of
// the back ends, loop devices, mounting, the lock of a directory. In packages below: each export, what keeps
// exports alive, and finding out what this kernel can do by doing it.
// Does not: where bytes come from (cache, volume), which snapshot needs what (snapshotter). It is ground: nothing
// below this folder imports another room, but for durable.
package blockdev

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
