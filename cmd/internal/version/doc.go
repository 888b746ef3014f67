// Package version holds what the build stamps into the binaries, and what versions of containerd can do.
//
// Belongs here: the version and the commit; questions to containerd's version. Does not: versions of formats and protocols, which
// stand beside their code.
package version
