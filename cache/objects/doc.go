// Package objects keeps parts of immutable objects on local disk, within the budget of the cache.
//
// Belongs here: files of objects, which of them are open, reading and writing past the page cache.
// Does not: what an object holds and whether it is whole (volume), images (cache/image).
package objects
