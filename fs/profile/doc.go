// Package profile holds what programs read of an image when they start, in order.
//
// An entry names a range of a file by its path and by the digest of its bytes, never by its place
// in a layer. So a profile that was recorded on one build of an image serves the next one too. It
// does for files that have not changed by their digest, and for the others by their path.
//
// Belongs here: the type, its encoding, the limits that bytes from outside must keep, merging.
// Does not: recording and prefetching (snapshotter, cache), registries (remote).
package profile
