// Package remote is empty: its two halves are packages of their own, and neither imports the other.
//
// Belongs here: nothing. Does not: blobs of registries (remote/registry), object stores (remote/store).
package remote
