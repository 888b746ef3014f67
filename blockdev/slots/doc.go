// Package slots is memory of fixed-size slots that outlives the process which maps it.
//
// The kernel reads requests and events straight into a slot, and the slot stays in use until the answer is written. When
// a process dies in between, the request lies there for the next one. Another process has the memory's descriptor, so
// nothing is lost that the kernel had already handed out.
//
// Belongs here: the memory, and which slots are free. Does not: what lies in a slot (blockdev/fusedev, blockdev/holder).
package slots
