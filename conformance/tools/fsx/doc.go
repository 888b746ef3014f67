// Package fsx checks a file against a model of it in memory, as fsx of the Linux test projects does. It reads, writes,
// maps, truncates and punches the file at random. The file may be on a file system or a block device itself.
//
// Belongs here: operations and the model. Does not: what is under the file, and what happens to that meanwhile.
package fsx
