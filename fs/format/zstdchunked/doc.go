// Package zstdchunked reads zstd:chunked layers: zstd frames back to back, and behind them a table
// of contents in a skippable frame, which an ordinary reader skips.
//
// There are two generations under one name and one media type. They differ in the prefix of their
// annotations (io.containers. and io.github.containers.), in the footer's length and mark, and the
// second has holes, chunks of any size, a record of the tar's headers (tar-split) and a table of
// version 2 which needs none. Facts: estargz/zstdchunked of stargz-snapshotter for the first,
// pkg/chunked/internal/minimal of containers/storage for the second.
//
// It trusts nothing but the digest of the packed table that the manifest carries.
//
// Belongs here: annotations, footers, the packed table. Does not: what the table says (fs/format/toc),
// fetching (remote), decoding and checking of extents (cache), writing (fs/convert).
package zstdchunked
