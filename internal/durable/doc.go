// Package durable replaces files so that a power cut at any moment leaves the old content or the new one, whole. Every
// replacement of a file in this project goes through it, and conformance/renames_test.go keeps that.
//
//	write DIR/.new-*  →  sync it  →  rename it to DIR/FILE  →  sync DIR
//
// A power cut or a kill may leave a .new-* behind. Sweep removes those that nobody writes.
//
// It also reads such files back, and keeps the rule for damaged ones: LoadJSON sets a file that it cannot use aside, as
// FILE.damaged-TIME, says in the log what is lost with it, and lets the caller go on. ListDamaged finds them again, until an
// operator removes them. Nothing damaged is deleted, and none is taken for an empty one.
//
// The libraries that do this stop halfway. continuity.AtomicWriteFile and google/renameio/v2 do not sync the directory, so a
// replacement that they report may be undone by a power cut. continuity leaves its file behind after an error. Neither removes
// what a crash leaves.
//
// Belongs here: replacing one file by bytes, by JSON or by what a caller writes; syncing directories; sweeping; reading small
// files, and setting damaged ones aside.
// Does not: what the files say, objects with versions (remote), logs that grow (cache, volume).
package durable
