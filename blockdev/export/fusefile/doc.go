// Package fusefile exports Devices as files in a directory that FUSE serves.
//
// The kernel mounts a file system on such a file, or sets a loop device up on it. In a writable directory programs can
// write to files whose Devices can be written to: fsync is Flush, and a punched hole is zeros that need no storage.
//
// Belongs here: the directory and its files. Does not: the FUSE connection itself (fusedev), what the bytes are.
package fusefile
