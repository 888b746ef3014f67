// Command snapctl pulls, converts and inspects images that remorad serves, and manages block devices and volumes.
//
// Belongs here: commands, their flags and what they print. Does not: work that must go on when the command is killed
// (remorad).
package main
