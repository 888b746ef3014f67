// Package formats lists the formats of layers that our programs read.
//
// Belongs here: one line a format. Does not: what a format is (fs/format), and code (the packages below that).
package formats
