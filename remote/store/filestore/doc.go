// Package filestore is a store.Store in a directory.
//
// Its conditional puts are atomic against every process of this machine that uses the directory, and across power
// cuts. A new object is a synced file that link(2) gives its name. A replaced one is compared under a lock and
// renamed over. The directory is synced before a put returns. So one directory on a local file system is a store
// for a single machine, and the default where there is no server.
//
// Belongs here: files, locks, syncing, room. Does not: what the objects are.
package filestore
