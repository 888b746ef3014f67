// Command bench measures what docs/performance.md shows: cold starts beside containerd's own snapshotters, and
// complete layers beside a local EROFS file. It measures devices beside other servers, volumes beside a local disk,
// and memory.
//
//	go run ./conformance/bench [-rounds 3] [-rtt 20ms] [-mbit 1000] [PART ...]
//
// The parts are coldstart, rebuilt, import, convert, complete, present, pause, layers, update, memory, nbd, disk and
// volume; without one it runs all.
//
// Belongs here: measurements that print a ratio against something else of the same run. Does not: tests.
package main
