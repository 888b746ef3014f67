// Package imagetest makes images for the tests of this room, and a registry in this process that serves them.
//
// Belongs here: archives, layers of every kind, images, and an origin that fails as a test says. Does not: a Snapshotter, or what
// a test wants of it (the tests themselves).
package imagetest
