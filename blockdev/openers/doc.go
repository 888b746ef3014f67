// Package openers says who has a block device open, for people: a device in use may not go, and somebody has to end the use.
//
// Whether a device is in use is the kernel's to say (blockdev.DetachLoop). It counts users and does not name them, so they are looked
// for: processes, devices on top, swap. What cannot be found that way may still be there.
//
// Belongs here: finding and naming users. Does not: mounts (blockdev/mounts), deciding anything by what was found.
package openers
