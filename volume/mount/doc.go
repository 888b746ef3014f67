// Package mount makes, checks, grows, mounts and unmounts the file systems of volumes.
//
// It never makes a file system where anything was written that it does not know, and a device that it cannot read is not one
// without a file system. What it starts to change a device (mkfs, e2fsck, resize2fs) runs to its end, whatever happens to the
// caller: none of them can be stopped half way without damage.
//
//	Probe ──> Make (a new volume) ──> Ready (check, grow what must not be mounted) ──> Mount ──> Grow (what must be)   Free
//
// Belongs here: what is done to a block device that is a volume, or could be one, by whatever asks for it. Does not: attaching
// (volume/host, blockdev/disk), which volume is where (cmd).
package mount
