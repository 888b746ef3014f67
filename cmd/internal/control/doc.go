// Package control is snapctl's side of the control API (cmd/control/v1): calls of remorad whose answers are what snapctl
// prints with --json, and errors that are fit for people.
//
// Names and types in that output do not follow the API's encoding: durations are seconds, lists are never null, and what is
// empty is left out where it always was.
//
// Belongs here: connecting, the translation of messages, what to do when the other side is of another release.
// Does not: the messages themselves (cmd/control/v1), what a call does (cmd/remorad), tables and flags (cmd/snapctl).
package control
