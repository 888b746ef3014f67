// Package export is the contract of the ways into the kernel. An Exporter makes a path of a Device, and what the kernel
// does with that path outlives the process that made it.
//
// Three things make that true. The number of an export is never used again, so it means the same bytes to every process
// that serves them. A keeper in another process holds the descriptors that the kernel's side depends on (holder). The next
// process takes these over, is told which exports there are, and answers what waits before anything new.
//
//	a process:    Take ──> Adopt, Adopt … ──> Start ──> Export, Withdraw … ──> Stop   the next one goes on
//	                                                                     └──> End    nothing goes on
//
// A way into the kernel is one package below this folder, or one file beside the file system that it serves, and a line in
// the list that cmd makes of them. A way that gives devices, not files to mount, is a Blocks as well; a way by which the
// kernel reads an image file itself is an InPlace.
//
// Belongs here: the contract, the paths, what a connection that a keeper holds has in common (Held). Does not: how any one
// way works, which device is exported where (snapshotter, blockdev/disk).
package export
