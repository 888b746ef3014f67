package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// ownProcessGroup makes this process the leader of a process group: the kernel never stops members of remorad's at the gates of
// layers (blockdev/autofs), and a script that starts containerd and remorad gives both its own. Whoever sits at a terminal can
// still interrupt it: in the terminal's foreground, it stays in its group.
func ownProcessGroup() error {
	if unix.Getpgrp() == os.Getpid() {
		return nil
	}
	if tty, err := os.Open("/dev/tty"); err == nil {
		defer tty.Close()
		if foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP); err == nil && foreground == unix.Getpgrp() {
			return nil
		}
	}
	return unix.Setpgid(0, 0)
}
