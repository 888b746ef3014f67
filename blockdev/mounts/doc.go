// Package mounts says what is mounted where, in every mount namespace of the node.
//
// A mount namespace that begins has a copy of every mount of the one it comes from. A container gives its copies up when
// it leaves the old root. A process whose namespace is private keeps them. It then also keeps the file systems and their
// devices, after they were unmounted where they had been mounted.
//
// Belongs here: reading mountinfo, and which process keeps a mount. Does not: mounting and unmounting (blockdev).
package mounts
