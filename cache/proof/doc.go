// Package proof tells whether a layer, decoded, is what its image's configuration promises: its diffID.
//
// Most of the plain blob comes from the image and its residue; what the cache has not kept is fetched. What was only supposed of a
// unit is believed until the digest is wrong, and then fetched.
//
// Belongs here: computing the digest of a plain blob. Does not: where the result is kept (cache/image), what follows from it
// (snapshotter).
package proof
