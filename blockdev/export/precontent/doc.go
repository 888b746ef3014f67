// Package precontent lets the kernel mount a sparse image file on the local disk and fills it just
// before the kernel reads it, by fanotify's pre-content events (Linux 6.14).
//
// What keeps it right, each line of it found by trying:
//
//   - The kernel decides at open(2) whether a file raises events: an image's metadata is written
//     and our descriptor opened first, then the file is marked, then it is mounted. Writing
//     through a descriptor opened after the mark raises an event to ourselves.
//   - When the last reference to the group goes, the kernel lets every read through, and holes
//     read as zeros. The holder has a second reference (blockdev/holder).
//   - An event is answered by the number of the descriptor that its reader got, and never
//     delivered twice, so the holder reads the events and keeps each until it is answered.
//   - A queue that overflows lets reads through: the group's queue has no limit.
//   - A mark is never taken from a file that misses anything, not even after its last mount is
//     gone: somebody may still have it open. It goes with the inode. Reads of a file that nobody
//     here knows any more are denied.
//   - Nothing is ever punched out of a file that the kernel has open this way (cache.File.Pin).
//
// Belongs here: the group, marks, events and their answers. Does not: reading events (holder),
// where bytes come from (cache), mounting.
package precontent
