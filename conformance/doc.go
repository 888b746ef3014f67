// Package conformance judges the whole from outside: real containerd, runc, registry and kernel.
//
// Belongs here: end-to-end tests, the test bed that starts the real programs, the link
// simulator, the demonstration and the benchmarks. Nothing outside imports it.
package conformance
