// Package nbd serves Devices to clients of the Network Block Device protocol
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), over Unix and TCP sockets.
//
// One goroutine a connection reads requests, many with one system call, and answers those at once that
// wait for nothing; the others go to workers, and the answers in whatever order they come. Whoever has
// an answer sends all that are ready, as far as the socket takes them without waiting; the rest is the
// connection's sender's. A socket is read as long as its client's requests fit the memory that one
// client may have: who asks for too much is answered late.
//
// Belongs here: the protocol, its limits, TLS, translating errors. Does not: what the bytes are.
package nbd
