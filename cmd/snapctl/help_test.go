package main

import (
	"testing"

	"github.com/remora-storage/remora/cmd/internal/version"
)

// TestHelp: every command has help that names it, and no command that needs arguments runs without.
func TestHelp(t *testing.T) {
	u := newUser(t)
	contains(t, u.run().ok(), "Available Commands", "snapctl doctor")
	contains(t, u.run("--version").ok(), version.String())
	for _, args := range [][]string{
		{"pull"}, {"convert"}, {"fetch"}, {"status"}, {"cache", "ls"}, {"cache", "pin"}, {"cache", "unpin"}, {"cache", "prune"}, {"detach"},
		{"doctor"},
		{"record"}, {"profile", "show"}, {"profile", "merge"}, {"profile", "push"}, {"profile", "pull"}, {"profile", "rm"},
		{"index", "create"}, {"index", "push"}, {"index", "ls"}, {"index", "show"}, {"index", "rm"}, {"trace"},
		{"dev", "serve"}, {"dev", "attach"}, {"dev", "detach"}, {"dev", "ls"},
		{"volume", "init"}, {"volume", "probe"}, {"volume", "create"}, {"volume", "ls"}, {"volume", "inspect"}, {"volume", "attach"},
		{"volume", "detach"},
		{"volume", "mount"}, {"volume", "umount"}, {"volume", "resize"}, {"volume", "rm"}, {"volume", "fsck"}, {"volume", "bench"},
	} {
		words := "snapctl"
		for _, a := range args {
			words += " " + a
		}
		contains(t, u.run(append(args, "--help")...).ok(), "Usage:\n  "+words, "--remora socket")
		u.run(append(args, "--no-such-flag")...).fails(2, "unknown flag: --no-such-flag (see "+words+" --help)")
		if words != "snapctl profile merge" { // which takes any number
			u.run(append(args, "one", "two", "three", "four")...).fails(2, words+" --help")
		}
	}
	for _, group := range []string{"cache", "profile", "index", "dev", "volume"} {
		contains(t, u.run(group).ok(), "Available Commands")
	}
	u.run("fly").fails(2, `unknown command "fly"`)
}

// TestNobodyAnswers: without remorad, whatever needs it says what to do.
func TestNobodyAnswers(t *testing.T) {
	u := newUser(t)
	file := u.file("disk.img", "x")
	for _, args := range [][]string{
		{"pull", "app"}, {"status"}, {"cache", "ls"}, {"cache", "pin", "app"}, {"cache", "unpin", "app"}, {"cache", "prune"}, {"detach", "--all"},
		{"dev", "attach", file}, {"dev", "detach", file}, {"dev", "ls"}, {"volume", "init", "file:x"}, {"volume", "probe", "file:x"},
		{"volume", "create", "v", "1G"}, {"volume", "ls"}, {"volume", "inspect", "v"}, {"volume", "attach", "v"}, {"volume", "detach", "v"},
		{"volume", "mount", "v", u.path("dir")}, {"volume", "umount", "v"}, {"volume", "resize", "v", "2G"}, {"volume", "rm", "v"},
		{"volume", "fsck", "v"},
		{"volume", "fsck", "--rebuild-into", "w", "v"}, {"volume", "bench"},
	} {
		u.run(args...).fails(1, "remorad does not answer on "+u.remorad, "systemctl status remorad")
	}
}
