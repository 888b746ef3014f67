// Package tartest makes archives for tests of what reads layers.
//
// Belongs here: members, archives of them, and bytes to put into them. Does not: what is made of an archive (the packages that
// make images for tests), and anything that the programs use.
package tartest
