// Package testbed starts the real programs that Remora works with: containerd, a registry,
// remorad, snapctl; and makes real images out of Debian packages.
//
// It needs root, the tools that "make tools" installs, and bin/ from "make build". What takes
// long to make is kept in the work directory, .work in the repository unless REMORA_WORK names
// another.
//
// Belongs here: what several packages of tests share. Does not: tests, and the contracts' suites (suite).
package testbed
