// Package disks tests block devices end to end: NBD with foreign clients, attached disks with real file systems, kills and power cuts.
//
// Belongs here: tests that a user of "snapctl dev" would recognise. "make test ONLY=disks" runs them.
// Does not: volumes (volumes), and the server's own unit tests (blockdev/nbd).
package disks
