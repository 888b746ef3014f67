// Package version holds what the build stamps into the binaries.
//
// Belongs here: the version and the commit. Does not: versions of formats and protocols, which stand beside their code.
package version
