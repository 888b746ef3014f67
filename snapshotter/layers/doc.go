// Package layers makes images in the cache of layers that are in registries.
//
// A Source says where a layer is. An Opening proves that the layer can be read, and reads its tree: from the index that the layer has,
// from one that was made of it, or by an import of all of it. Of the tree an image is built in the cache. What the image misses then
// comes from whichever repository answers. No image decides what another one shows.
//
// Belongs here: sources, proofs, openings, imports, indexes that are kept or published, who is believed. Does not: snapshots, what
// ties them to layers, and mounts (snapshotter); requests (remote/registry); formats (fs/format); what is kept of an image (cache).
package layers
