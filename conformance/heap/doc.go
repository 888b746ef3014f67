// Package heap measures what a call takes of memory and of processor time, for tests that bound it.
//
// Belongs here: measuring. Does not: what the bounds are, which each test says.
package heap
