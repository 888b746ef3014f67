// Package convert turns a layer (a tar, plain or packed by gzip or zstd) into one that can be read
// lazily: eStargz or zstd:chunked.
//
// Equal layers and options give equal bytes, whatever the machine and the number of jobs. Memory is
// bounded by the number of jobs and the size of the table of contents; the layer itself goes through
// files.
//
// The tar is cut, sorted and described by the estargz library; how it is packed, and the tables of
// contents, are ours.
//
// Belongs here: packing of layers. Does not: manifests, registries (cmd/snapctl), reading
// (fs/format/...).
package convert
