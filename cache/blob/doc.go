// Package blob says how a blob is cut and packed, in the words that front ends, image writers and the cache share.
//
// Belongs here: codecs, units. Does not: decoding (cache), what lies in a unit (fs/layout, cache.Extent).
package blob
