// Package layout is the form that every image format is turned into and every back end reads.
//
// A Layout is the tree of one layer (inodes and directory entries) and its data. It says which
// range of which file lies in which unit of the blob, how to decode the unit, and the digest of the
// plain bytes. A front end builds it with a Builder, which applies the rules that containerd's
// unpacker applies: names are cleaned, later entries replace earlier ones, whiteouts become
// overlay's own.
//
// Belongs here: the types, the Builder, the limits that bytes from outside must keep.
// Does not: parsing of any format (fs/format/...), any on-disk form (fs/erofs, cache).
package layout
