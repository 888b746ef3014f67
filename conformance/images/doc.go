// Package images tests remote images end to end: pulls, starts, imports, conversions, faults, kills and restarts, by the real containerd,
// runc, registry and kernel.
//
// Belongs here: tests that a user of images would recognise. "make test ONLY=images" runs them. Each leaves its machine as it was.
// Does not: what several such packages share (testbed), and tests that need no root (beside the code).
package images
