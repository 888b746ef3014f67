// Package start fetches what a container reads first, before the container is there.
//
// From the moment that an image's layers become known until its program runs, it fetches what the program will read, in reading order.
// It uses a recorded or published profile, hints in the layers, or the entrypoint's known needs. It learns what the first start reads.
//
// Belongs here: first starts, profiles of this node, predictions, recorders, pulls that begin early. Does not: snapshots and mounts
// (snapshotter), how layers are opened (snapshotter/layers), what a profile is (fs/profile), prefetching itself (cache).
package start
