// Package index keeps what was found in a layer that has no index of its own, so that its next reader needs
// only the parts that it reads. That is the archive's entries, the digest of every extent, and the places at
// which decoding can begin.
//
// fs/scan makes a layer's index while it reads the whole layer. The indexes of an image's layers are published
// together, as one artifact beside the image.
//
// Belongs here: the form of an index, what it promises, its limits. Does not: reading archives (fs/scan),
// publishing (remote).
package index
