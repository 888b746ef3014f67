// Package disk attaches Devices that can be written to as block devices of the kernel, which outlive this process.
//
// How the kernel has them is an export.Blocks: loop devices on files that FUSE serves, say. What is attached is written
// down first, so that the next process finds what it has to serve. Until that process is there, a keeper holds what the
// devices depend on: programs that use a disk wait, and writes that were under way are carried out once, before anything
// new.
//
// Belongs here: what is attached, the record of it, who uses it. Does not: what the bytes are, which the caller of Open
// knows; how the kernel reaches them (export).
package disk
