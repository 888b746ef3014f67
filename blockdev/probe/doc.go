// Package probe finds out in which ways this kernel, and the file system that images lie on, can
// mount an image, by doing it.
//
// Belongs here: trying, and what came of it. Does not: which way is taken for which layer
// (snapshotter).
package probe
