// Package plain is the way by which the kernel reads a complete image without us. It reads the file itself, or a loop
// device on it where the kernel or the file system (tmpfs) needs one.
//
// Belongs here: mounting such files and telling what is mounted so. Does not: whether a file is complete (cache).
package plain
