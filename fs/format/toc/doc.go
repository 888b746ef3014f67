// Package toc turns the table of contents that eStargz and zstd:chunked share into a layout.Layout.
//
// Belongs here: the JSON form of the table and what its entries mean. Does not: where the table lies
// and how it is packed and vouched for (fs/format/estargz, fs/format/zstdchunked).
package toc
