// Package loop is the way by which the kernel has a loop device on a file that another way exports.
//
// Two kinds: devices of images, which go with their last mount, and those of disks, which can be written to and stay, past
// the page cache, until they are withdrawn.
//
// Belongs here: loop devices as exports. Does not: the calls that set one up (blockdev), where the files come from
// (fusefile).
package loop
