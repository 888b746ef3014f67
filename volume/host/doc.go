// Package host keeps the volumes that one node owns: which stores they are in, the node's leases, journals and
// identity, and what was attached when the daemon ended.
//
// Belongs here: the node's side of volumes. Does not: the engine (volume), devices of the kernel (blockdev/disk).
package host
