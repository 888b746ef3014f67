// Package blob says how a blob is cut and packed, in the words that front ends, image writers and the cache share, and decodes
// its units.
//
// What it decodes came from a source and may be anything: it bounds what it keeps in memory, and tells the errors of a source
// from bytes that are wrong.
//
// Belongs here: codecs, units, decoding. Does not: what lies in a unit (fs/layout, cache/image), fetching (cache/fetch).
package blob
