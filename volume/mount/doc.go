// Package mount makes, checks, grows, mounts and unmounts the file systems of volumes.
//
// It never makes a file system where anything was written that it does not know, and a device that it cannot read is not one
// without a file system. What it starts to change a device (mkfs, e2fsck, resize2fs) runs to its end, whatever happens to the
// caller: none of them can be stopped half way without damage.
//
// A new file system is "making ext4" in the volume's head before the device is changed, and "ext4" when the store has all of it.
//
// What waits for a device cannot be killed, so all this runs in a process apart from the one that serves the device (Apart, Serve).
//
//	Bring: Prepare (Probe ──> Make (a new one) ──> Ready (check, grow what must not be mounted)) ──> Mount ──> Grow
//	Free
//
// Belongs here: what is done to a block device that is a volume, or could be one, by whatever asks for it. Does not: attaching
// (volume/host, blockdev/disk), which volume is where (cmd).
package mount
