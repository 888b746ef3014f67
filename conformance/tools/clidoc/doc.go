// Command clidoc prints docs/cli.md: the help of every command.
//
// Belongs here: the form of that page. Does not: the help itself (cmd).
package main
