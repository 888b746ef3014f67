// Package fuse serves the trees of layers by FUSE, for kernels and sandboxes without EROFS.
//
// A layer's tree is read from the metadata of its EROFS image, which lies on disk. No inode is kept
// in memory, and a node's number is the layer's number and the inode's place in the image. So a
// process that takes a connection over knows all that its predecessor did.
//
// Belongs here: lookups, directories, attributes and data of trees. Does not: the connection
// (blockdev/fusedev), mounts.
package fuse
