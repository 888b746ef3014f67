// Package node has the one owner of what this node does with each of its volumes. What was asked last of a volume, what is true of it
// here, and what is being done stand in one place, and one thing is done at a time.
//
// Callers join what is under way and leave it; it belongs to none of them. An interrupted detach goes on, and an attach ends early
// only if nobody waits for it any longer.
//
// step.go decides and has no effects. attachments.go does what was decided, through Hands.
//
// Belongs here: the order of things, who waits for which, and what a volume's state is called. Does not: the engine (volume), stores,
// leases and journals of the node (volume/host), the kernel's devices (blockdev).
package node
