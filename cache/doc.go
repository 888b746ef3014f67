// Package cache keeps verified extents of remote blobs on local disk.
//
// A File is one layer's image: a sparse file whose metadata is written when it is created and
// whose data is filled extent by extent as it is read. The cache bounds its own size in bytes,
// evicts the least recently used extent first, and may be killed at any moment: an extent is
// recorded only after its bytes are verified and synced, so what is recorded is right and is
// never fetched or verified again.
//
// Callers that miss together share one fetch. A reader's miss goes before prefetch. Extents with
// the same digest are the same bytes in whatever layer, and are copied locally.
//
// Belongs here: image files, the extent table, the presence record, fills, eviction.
// Does not: HTTP and registries (remote), inodes (fs), mounts (blockdev, snapshotter).
package cache
