// Package cmdtest has what tests of the programs speak to: a registry and containerd's services, in the test's own process.
//
// Belongs here: servers and images that tests of more than one program use. They need no root and leave nothing behind.
// Does not: what the end-to-end tests start as processes (conformance/testbed), or what only one program's tests need.
package cmdtest
