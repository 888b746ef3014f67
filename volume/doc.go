// Package volume is a block device whose bytes are in a store.Store.
//
// A volume is a log. Writes go to a journal on local disk and are acknowledged there; runs of them become immutable
// segments in the store, and one small object, the volume's head, names the segments that count. The head changes by
// compare-and-swap alone, and carries the epoch of its owner: who has lost the volume to another node finds its next
// swap refused, and never acknowledges again. Where each block lies is told by a tree of immutable map nodes, which is
// made anew from time to time (a checkpoint), and by what has been written since.
//
//	write → journal → active generation → sealed → segments → head      (acknowledged → uploaded → committed)
//	read  ← active ← sealed ← tail of the log ← tree                     (newest first)
//
// Promises: an acknowledged write survives this process. A flushed one survives whatever the volume's Class says.
// After a crash the device holds a prefix of its history.
//
// Belongs here: heads, segments, the map, journals, leases, and the engine that keeps them. Does not: objects and
// their requests (remote), files of extents (cache), how the kernel sees a device (blockdev).
package volume
