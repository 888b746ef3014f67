// Package snapshotter is containerd's snapshots.Snapshotter over images that are still remote.
//
// An ordinary layer is a directory, as in containerd's overlay snapshotter. Prepare claims a remote
// layer: it commits the snapshot immediately, and containerd skips the download. An EROFS image of
// the layer appears on the snapshot's directory, and its data comes when it is read. Both kinds are
// lower directories of the same overlay mounts.
//
// From the moment of a pull it fetches what the image's program will read, by a profile that a
// node recorded or somebody published. It also records profiles.
//
// Belongs here: containerd's contract, which layer is remote and why, what is mounted where.
// Does not: how bytes are fetched and kept (remote, cache), how images are written (fs).
package snapshotter
