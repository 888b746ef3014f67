// Package wire has what formats of bytes share, on disk and in stores: numbers of variable length, and the checksum.
//
// Belongs here: reading LEB128, CRC32C. Does not: any one format (volume, cache, fs/index), or what is wrong with one.
package wire
