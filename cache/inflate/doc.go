// Package inflate decodes gzip so that decoding can begin again in the middle.
//
// A Stream decodes a file from its start and notes, every so many plain bytes, a Point. That says
// where in the file a DEFLATE block begins, to the bit, and which bytes before it that block's data
// refers back to. From a Point and the packed bytes behind it the plain bytes behind it can be had,
// without anything before.
//
// Library inflaters can do neither: they do not say where a block begins, and cannot start inside a
// byte.
//
// Belongs here: DEFLATE (RFC 1951), gzip's frame around it (RFC 1952). Does not: checksums of what is
// decoded (callers check better digests); where points are kept (cache, fs/index).
package inflate
