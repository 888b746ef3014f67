package export

import (
	"context"
	"errors"
	"os"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// An Exporter is one way into the kernel. Two Exporters may share a connection, such as files that FUSE serves and loop
// devices on these files: what starts, stops or ends it does so once. All methods are safe for concurrent use.
type Exporter interface {
	Life

	// Backend names the way. It is "" for the one by which the kernel reads a complete image without us.
	Backend() blockdev.Backend

	// Export shows a device's bytes to the kernel until Withdraw, and makes the way's connection if there is none. id is
	// not 0, and never used again under the same root: whatever in the kernel uses the export finds the same bytes as long
	// as it lives, whoever serves them. The caller releases the Path once it has used it.
	Export(id uint64, dev blockdev.Device, how How) (Path, error)

	// Adopt connects what an earlier process exported with its bytes. Its error says what has become of those who use it;
	// ErrLost is in it where the connection has ended.
	Adopt(id uint64, dev blockdev.Device) error

	// Withdraw undoes Export or Adopt, after the last use. Where the kernel itself knows of users it fails with EBUSY, and
	// the export stays. Of a device that the kernel may have written to everything has been handed to the device before.
	Withdraw(ctx context.Context, id uint64) error

	// Made says what a mount of this process's namespace is to this way.
	Made(m mounts.Mount) Made
}

// A Life is what happens to a way as a whole.
type Life interface {
	// Take takes over what an earlier process left: the files in kept that are this way's, which it removes from there.
	// What nobody can use stays in kept, for the caller to drop. Nothing is served before Start. It is called first, and
	// not at all where nothing was kept. taken says that there is a connection to adopt exports of.
	Take(kept map[string][]*os.File) (taken bool, err error)

	// Start serves what was taken over. All of it has been adopted before: what serves nothing else may end. A connection that Export
	// makes needs no Start.
	Start() error

	// Stop ends serving. The exports wait for the next process: a request that is not answered yet is lost to nobody, but
	// answered by that process before anything new.
	Stop() error

	// End takes the way's connection away, for good, and what an earlier process left of it. Whatever in the kernel still
	// uses an export gets errors. A later Export makes a new connection.
	End() error
}

// Blocks are an Exporter whose paths are block devices that stay until Withdraw: disks, where the others are there to be
// mounted.
type Blocks interface {
	Exporter

	// Find returns the block device of an export that this or an earlier process made, "" if the kernel has none.
	Find(id uint64) (path string, err error)

	// Left returns the block devices of all exports that this or an earlier process made and the kernel has, by id.
	Left() ([]Block, error)

	// Grow tells the kernel that an export's device has more bytes.
	Grow(id uint64) error

	// Drop is Withdraw where nothing can be handed to the device: the block device goes with its last user, and every use
	// of it fails. An export that is not there is no error.
	Drop(id uint64) error
}

// A Block is the block device of an export, as the kernel knows it.
type Block struct {
	ID   uint64
	Path string
	Size int64 // bytes
	How
}

// InPlace is an Exporter by which the kernel reads an image file itself and asks for what is missing. Images have names in
// a cache; those that the kernel does not ask about are no error.
type InPlace interface {
	Exporter

	// Held returns a copy of the descriptor that an earlier process had of an image, or nil if it had none.
	Held(image string) (*os.File, error)

	// Marked reports whether an earlier process had the kernel ask about an image, and Held was asked for it.
	Marked(image string) bool

	// Knows reports whether the kernel asks this process about an image.
	Knows(image string) bool

	// Complete lets the kernel read an image without asking. Every byte is in its file, and that is on stable storage.
	Complete(image string, dev blockdev.Device) error

	// Forget drops an image whose file is about to go.
	Forget(image string) error
}

// A Quieter is a Device that answers flushes sooner where no program waits for them. Withdraw says so while it holds the kernel's path
// to it: whenever alone says that no program has it open, until end is called.
type Quieter interface {
	Quiet(alone func() bool) (end func())
}

// How says how the kernel may use a device. The zero value is how a disk is used by default.
type How struct {
	ReadOnly bool
	Sector   int // bytes of a logical block of a block device, 512 or 4096 (0)
}

// Made is what a mount is to a way.
type Made int

// What mounts are.
const (
	NotMade    Made = iota // none of this way's
	Export                 // it shows an export
	Connection             // exports depend on it, and it was taken over or made by this process
)

// ErrOver says that Stop was called: nothing begins any more.
var ErrOver = errors.New("what is exported is left to the next process")

// ErrLost says that what an export depended on has ended, with every process that kept it.
var ErrLost = errors.New("remorad and its holder both ended while it was mounted; reads of data that was not cached fail")
