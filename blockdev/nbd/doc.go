// Package nbd serves Devices to clients of the Network Block Device protocol
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), over Unix and TCP sockets.
//
// One goroutine per connection reads requests, many with one system call, and answers those that wait for nothing.
// Workers carry out the others, and their answers go out in whatever order they come. A goroutine that has an answer
// sends all that are ready, as far as the socket takes them without waiting; the connection's sender sends the rest.
// The server reads a socket as long as its client's requests fit the memory that one client may have. A client that
// asks for too much gets its answers late.
//
// Belongs here: the protocol, its limits, TLS, translating errors. Does not: what the bytes are.
package nbd
