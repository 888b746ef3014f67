// Package heap measures what a call takes of memory and of processor time, and how much it has written, for tests that bound it.
//
// Belongs here: measuring, and what any decoder of bytes from outside may take. Does not: bounds of one decoder, which its tests say.
package heap
