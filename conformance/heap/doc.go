// Package heap measures what a call takes of memory, for tests that bound it.
//
// Belongs here: measuring. Does not: what the bounds are, which each test says.
package heap
