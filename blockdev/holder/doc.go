// Package holder keeps what mounts depend on while the daemon is not there.
//
// A holder is a small process beside the daemon. It has a second reference to every descriptor
// whose loss would break a mount: FUSE connections with the memory of their requests, fanotify
// groups with the memory of their events, and image files opened before they were marked. It also
// reads the fanotify groups itself, because the kernel never delivers an event again that a dead
// process had read. The holder keeps each event's descriptor, and with it the number that answers
// it, until the daemon says that it is answered. It offers what is unanswered to the next daemon
// before anything new.
//
// The daemon holds all of the same descriptors. When the holder dies alone, the daemon starts
// another and hands everything over. The new holder reads no event before those that the dead one
// had read are answered (see watch.go).
//
// Belongs here: the holder's process, its protocol, the client of it, reading events. Does not:
// the network, images, mounts; a holder parses kernel structures and frames of its protocol only.
package holder
