// Package scan reads a layer once, from start to end, and says what is in it.
//
// It takes plain tar, gzip and zstd. Decoding, the digests of the blob and of its plain bytes, and the
// files' data run beside each other. What comes out is a layout.Layout: the tree, the digest of every
// extent, and the places at which decoding can begin next time. So no other reader of the layer needs
// all of it.
//
// Belongs here: archives and compressed streams from start to end. Does not: where the bytes come from
// (remote) and go to (cache), the form in which what was found is kept (fs/index).
package scan
