package mount

import (
	"time"

	"github.com/remora-storage/remora/blockdev/openers"
)

// flushing is how long the last unmount of a file system waits for its device until that can only be because of a store that is away. Of
// a file system that is in use still, such as one whose mount was taken away lazily, an unmount returns sooner.
const flushing = time.Second

// Unused returns what tells whether the kernel alone uses a device, to come to the end of an unmount that begins now: it is mounted
// nowhere any more, and no program has it open.
func Unused(dev string) func() bool {
	begin := time.Now()
	return func() bool {
		if time.Since(begin) < flushing {
			return false
		}
		if mounted, err := mountedAnywhere(dev); err != nil || mounted {
			return false
		}
		return openers.Alone(dev) // the process that unmounts it has it open
	}
}
