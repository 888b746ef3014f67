// Package cache keeps verified extents of remote blobs on local disk.
//
// A File is one layer's image: a sparse file whose metadata is written when it is created and
// whose data is filled extent by extent as it is read. The cache bounds its own size in bytes,
// evicts the least recently used extent first, and may be killed at any moment.
//
// This package puts together what does that, and is all that most callers need. Imports go down alone:
//
//	cache → proof → fetch → image → blob → inflate
//	            cache, image, objects → budget
//
// An image knows no source, a fetch no promise, and a blob no disk. Where something below has news for what is above (a disk lost
// bytes), it calls a function that it was given when it was opened. It holds no lock of its own then that the function may need.
//
// Cache.mu is taken before the locks of packages below; the doc.go of each says what their order is.
//
// Belongs here: which files are open, the words that callers use. Does not: anything that one of the packages below can do alone,
// HTTP and registries (remote), inodes (fs), mounts (blockdev, snapshotter).
package cache
