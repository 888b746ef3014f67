// Package budget bounds the bytes on disk of all that is cached, and makes room for more.
//
// It never exceeds its limit: bytes are reserved before they are written. For room it has those that hold bytes give up what was
// used least recently.
//
// Belongs here: counting, choosing what goes. Does not: how bytes are taken away (cache/image, cache/objects).
package budget
