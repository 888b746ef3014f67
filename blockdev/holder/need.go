package holder

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// needed reports whether anything in the kernel depends on what is kept: a FUSE file system that is mounted, a file that a group of
// fanotify has a mark on. What is not known counts as needed.
func needed(items map[string][]*os.File) bool {
	groups, others := 0, 0
	for _, files := range items {
		for _, f := range files {
			name, info := describe(f)
			switch {
			case strings.HasPrefix(name, "/memfd:"): // requests and events, which are of use beside the others alone
			case name == "anon_inode:[fanotify]":
				groups++
				if marks.MatchString(info) {
					return true
				}
			case name == "/dev/fuse":
				if connected(f) {
					return true
				}
			default:
				others++
			}
		}
	}
	return others > 0 && groups == 0 // beside a group they are the files that it had marks on
}

// marks are lines of a group's fdinfo (proc_pid_fdinfo(5)).
var marks = regexp.MustCompile(`\nfanotify (ino|mnt_id|sdev):`)

// describe returns what the kernel says of a descriptor.
func describe(f *os.File) (name, info string) {
	raw, err := f.SyscallConn()
	if err != nil {
		return "", ""
	}
	_ = raw.Control(func(fd uintptr) { // an error leaves the words empty
		name, _ = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		p, _ := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		info = "\n" + string(p)
	})
	return name, info
}

// connected reports whether the file system of a FUSE connection is mounted: the kernel ends the connection with the last mount.
func connected(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return true
	}
	polled := []unix.PollFd{{Events: unix.POLLIN}}
	err = raw.Control(func(fd uintptr) {
		polled[0].Fd = int32(fd)
		_, _ = unix.Poll(polled, 0) // without an answer it is connected
	})
	return err != nil || polled[0].Revents&unix.POLLERR == 0
}
