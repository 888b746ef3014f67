// Package start fetches what a container reads first, before the container is there.
//
// From the moment that an image's layers become known until its program runs, what the program will read is fetched in the order in
// which it will be read: by a profile that this node has recorded or that is published, by what the layers say, or by what the
// entrypoint is known to need. What the first start then reads is learned.
//
// Belongs here: first starts, profiles of this node, predictions, recorders, pulls that begin early. Does not: snapshots and mounts
// (snapshotter), how layers are opened (snapshotter/layers), what a profile is (fs/profile), prefetching itself (cache).
package start
