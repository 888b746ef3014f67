// Package cli is what the main functions of both programs share.
//
// Belongs here: signals, exit codes, errors of usage, listening on a socket. Does not: any command.
package cli
