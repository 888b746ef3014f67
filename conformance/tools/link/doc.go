// Package link simulates a network link in user space: a TCP proxy with a delay each way and one token bucket per
// direction for all connections together.
//
// A connection through it costs a round trip before its first byte moves, as a handshake does. Before the link is a queue
// of one second's bytes, which all connections share. What does not fit into it waits at the sender, connection by
// connection.
//
// Belongs here: delay, rate and the queue. Does not: loss, and TCP's slow start, which nothing here simulates.
package link
