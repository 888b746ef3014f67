// Package remote is empty. Blobs of registries are in remote/registry, object stores in remote/store; neither imports
// the other.
package remote
