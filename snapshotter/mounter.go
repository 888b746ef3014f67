package snapshotter

import (
	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/cache"
)

// A Mounter mounts layers whose images are incomplete, and takes over what an earlier process has
// mounted. Exports are one.
type Mounter interface {
	// Outlive reports whether mounts outlive this process.
	Outlive() bool

	// mount shows an incomplete image in dir by a back end. id is the snapshot's number.
	mount(way blockdev.Backend, id uint64, f *cache.File, dir string) error
	// serve is mount by FUSE, with the image's bytes read from dev, which passes them on.
	serve(way blockdev.Backend, id uint64, dev blockdev.Device, dir string) error
	// release undoes mount, serve or adopt, after the unmounting.
	release(way blockdev.Backend, id uint64)
	// expose makes a file of an image's bytes; end takes it away.
	expose(id uint64, f *cache.File) (path string, end func(), err error)
	// complete lets the kernel read a complete image without asking.
	complete(f *cache.File) error
	// forget drops an image that is about to be removed.
	forget(id string) error

	// holds reports whether exports that were taken over depend on a mount.
	holds(m mounts.Mount) bool
	// adopt connects a layer that an earlier process mounted with its image, and returns the way by which that
	// was: "" where the kernel reads the image file by itself, since it is complete. Its error says why nobody
	// can use the mount.
	adopt(m mounts.Mount, id uint64, f *cache.File) (way blockdev.Backend, err error)
	// start serves what was taken over. All bindings have been told of before.
	start() error

	// leave stops serving. What is mounted waits for the next process.
	leave() error
	// end takes everything away, for good.
	end() error
}

var _ Mounter = (*Exports)(nil)
