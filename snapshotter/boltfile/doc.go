// Package boltfile tells whether bbolt can open a file. bbolt maps its file and believes it. Of a damaged one it may panic in a
// goroutine of its own, read behind the file's end, or follow pages in a circle. Check reads the same pages without trusting
// any of them.
//
// Belongs here: the layout of bbolt's pages (version 2).
// Does not: what the keys and values mean (snapshotter).
package boltfile
