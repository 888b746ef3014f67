// Package volumes tests volumes end to end: real stores, real file systems and databases, nodes that are killed, cut off and replaced.
//
// Belongs here: tests that a user of "snapctl volume" would recognise. "make test ONLY=volumes" runs them.
// Does not: the simulation of the engine (volume), and disks on local files (disks).
package volumes
