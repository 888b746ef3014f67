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
	// serve is mount by FUSE, with the image's bytes read from dev.
	serve(way blockdev.Backend, id uint64, f *cache.File, dev blockdev.Device, dir string) error
	// release undoes mount, serve or adopt, after the unmounting.
	release(way blockdev.Backend, id uint64, f *cache.File)
	// expose makes a file of an image's bytes; end takes it away.
	expose(id uint64, f *cache.File) (path string, end func(), err error)
	// complete lets the kernel read a complete image without asking.
	complete(f *cache.File) error
	// forget drops an image that is about to be removed.
	forget(id string) error

	// adopted reports what was taken over; filesDir and treesDir are where that is mounted.
	adopted() (files, trees bool)
	filesDir() string
	treesDir() string
	// wayOf says by which back end a mount was made: Precontent also where an image file that is complete
	// is mounted as it is, and "" where that is by a loop device. ok is false for what is not a layer's.
	wayOf(m mounts.Mount) (way blockdev.Backend, ok bool)
	// marked reports whether the kernel asks this process, or its holder, for what an image misses.
	marked(id string) bool
	// unmark takes that away from an image which was complete already.
	unmark(f *cache.File) error
	// adopt connects a layer that an earlier process mounted with its image.
	adopt(way blockdev.Backend, id uint64, f *cache.File) error
	// start serves what was taken over. All bindings have been told of before.
	start() error

	// leave stops serving. What is mounted waits for the next process.
	leave() error
	// end takes everything away, for good.
	end() error
}

var _ Mounter = (*Exports)(nil)
