// Package annotation has the names of annotations on layers' descriptors that one package writes and others read.
//
// Belongs here: names, and what their values mean. Does not: code (fs/convert writes them, fs/format and snapshotter/layers read
// them).
package annotation
