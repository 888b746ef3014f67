// Package fusedev serves a FUSE connection that outlives the process which serves it.
//
// go-fuse gives us the protocol's types and the RawFileSystem interface. Its server cannot take
// over a connection: it waits for an INIT, which the kernel sends once in a connection's life. What
// it had read when it died is lost (before Linux 6.9 for good). So the loop between the kernel and
// a RawFileSystem is our own:
//
//   - a request is read straight into a slot of memory that another process keeps too
//     (blockdev/slots) and stays there until the kernel has its answer;
//   - the next process answers what it finds there, and goes on reading. That needs nothing of
//     the kernel, on any version: no request is resent, so no answer can miss its mark.
//
// File systems served this way keep no state about what the kernel knows: node numbers mean the
// same in every process's life, and file handles nothing.
//
// Belongs here: the connection, its requests, mounting and ending it. Does not: what is served.
package fusedev
