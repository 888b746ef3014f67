// Command remorad is Remora's daemon: containerd's proxy snapshotter over remote images, and the server of disks and
// volumes. "remorad holder" is the small process that keeps mounts alive while the daemon is away.
//
// Belongs here: settings, plugging the parts together (serve.go), answers to snapctl. Does not: anything that a second
// daemon would need, too (snapshotter, volume/host, blockdev/disk).
package main
