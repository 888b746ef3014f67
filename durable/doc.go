// Package durable changes files of the node's own so that a crash of the machine leaves the old or the new ones.
//
// Belongs here: replacing a small file, syncing a directory. Does not: what the files say, logs that grow.
package durable
