// Package volume is a block device whose bytes are in a store.Store.
//
// A volume is a log. Writes go to a journal on local disk and are acknowledged there; runs of them become immutable
// segments in the store, and one small object, the volume's head, names the segments that count. The head changes by
// compare-and-swap alone, and carries the epoch of its owner: a node that lost the volume to another finds its next
// swap refused, and never acknowledges again. A tree of immutable map nodes says where each block lies, together with
// what was written since; a checkpoint makes the tree anew from time to time.
//
//	write → journal → active generation → sealed → segments → head      (acknowledged → uploaded → committed)
//	read  ← active ← sealed ← tail of the log ← tree                     (newest first)
//
// Promises: an acknowledged write survives this process. A flushed write survives whatever the volume's Class says.
// After a crash the device holds a prefix of its history.
//
// Belongs here: heads, segments, the map, journals, leases, and the engine that keeps them. Does not: objects and
// their requests (remote), files of extents (cache), how the kernel sees a device (blockdev).
package volume
