// Package peer says who is at the other end of a Unix socket, by what the kernel knows.
//
// Belongs here: what SO_PEERCRED says. Does not: who may do what, which those that listen decide.
package peer
