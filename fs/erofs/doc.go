// Package erofs turns a layout.Layout into one linear EROFS image: metadata first, then every
// file's data at an aligned offset, in the order in which it lies in the blob.
//
// The image is uncompressed and uses only what Linux has had since 5.4: extended inodes, flat
// data, inline directory tails, inline extended attributes. The metadata is written at once;
// the data is left to whoever fills the image (package cache).
//
// The format is described in the kernel's fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst.
//
// Belongs here: the writer. Does not: mounting (blockdev), reading.
package erofs
