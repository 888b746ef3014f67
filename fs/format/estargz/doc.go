// Package estargz reads eStargz layers: gzip members back to back with a table of contents at
// the end (https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md).
//
// It trusts nothing but the digest of the table of contents that the manifest carries. It turns the
// table into a layout.Layout whose every extent has a digest of its own.
//
// Belongs here: the footer, the table, the landmarks. Does not: fetching (remote), decoding and
// checking of extents (cache), writing eStargz (fs/convert).
package estargz
