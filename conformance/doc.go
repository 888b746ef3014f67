// Package conformance judges the whole from outside: real containerd, runc, registry and kernel.
//
// Belongs here: the suites of contracts that several rooms fulfil, end-to-end tests, the test bed that starts the real programs, the link
// simulator, the demonstration and the benchmarks. Only tests import it.
package conformance
