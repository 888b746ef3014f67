// Package snapshotter is containerd's snapshots.Snapshotter over images that are still remote.
//
// An ordinary layer is a directory, as in containerd's overlay snapshotter. Prepare claims a remote
// layer: it commits the snapshot immediately, and containerd skips the download. An EROFS image of
// the layer appears on the snapshot's directory, and its data comes when it is read. Both kinds are
// lower directories of the same overlay mounts.
//
// Its parts stand on one base, and each has its own state: claims, bindings and how they are mounted, gates, what becomes of promises
// that break, releases, recordings, and what is done in the background.
//
// Belongs here: containerd's contract, which layer is remote and why, what is mounted where.
// Does not: how a layer becomes an image in the cache (snapshotter/layers), what a container reads first (snapshotter/start), how
// bytes are fetched and kept (remote, cache), how images are written (fs).
package snapshotter
