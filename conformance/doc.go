// Package conformance judges the whole from outside: real containerd, runc, registry and kernel.
//
// Belongs here, a folder each: the suites of contracts (suite), the test bed that starts the real programs (testbed), end-to-end tests,
// benchmarks (bench), the demonstration (demo), and tools of the tests (tools). This package itself tests what is true of the whole
// tree: which room may import which, and that documents say what the programs do.
// Does not: anything that the product imports.
package conformance
