// Package nbdload is an NBD client that costs little: it sends many requests with one system call and reads many answers
// with one, so that measurements show the server. It shares no code with blockdev/nbd.
//
// Belongs here: the client, and the load it makes. Does not: which servers are compared (conformance/bench).
package nbdload
