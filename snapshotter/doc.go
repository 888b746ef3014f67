// Package snapshotter is containerd's snapshots.Snapshotter over images that are still remote.
//
// An ordinary layer is a directory, as in containerd's overlay snapshotter. A remote layer is
// claimed in Prepare: the snapshot is committed at once, containerd skips its download, and an
// EROFS image of the layer appears on the snapshot's directory, whose data comes when it is
// read. Both kinds are lower directories of the same overlay mounts.
//
// From the moment of a pull it fetches what the image's program will read, by a profile that was
// recorded here or published, and it records profiles.
//
// Belongs here: containerd's contract, which layer is remote and why, what is mounted where.
// Does not: how bytes are fetched and kept (remote, cache), how images are written (fs).
package snapshotter
