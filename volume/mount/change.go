package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Default is the kind of file system that a new volume gets.
const Default = "ext4"

// makers are the programs that make file systems. None discards first: a new volume is empty.
var makers = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-E", "nodiscard"},
	"xfs":   {"mkfs.xfs", "-q", "-K"},
	"btrfs": {"mkfs.btrfs", "-q", "-K"},
}

// over are what makers need to make one over what they have made half.
var over = map[string][]string{"xfs": {"-f"}, "btrfs": {"-f"}}

const mkfsTries = 20

// Known reports whether volumes can have a kind of file system.
func Known(kind string) bool { return makers[kind] != nil }

// canMake says what is missing to make a kind of file system.
func canMake(kind string) error {
	m := makers[kind]
	if m == nil {
		return fmt.Errorf("%s: not a file system of volumes", kind)
	}
	_, err := exec.LookPath(m[0])
	return err
}

// Make makes a file system, which the device has flushed when it returns. Whatever was on the device is lost. again says that a half
// made one may be there.
func Make(kind, dev string, again bool) error {
	m := makers[kind]
	if m == nil {
		return fmt.Errorf("%s: not a file system of volumes", kind)
	}
	args := m[1:len(m):len(m)]
	if again {
		args = append(args, over[kind]...)
	}
	args = append(args, dev)
	err := program(m[0], args...)
	// mkfs.btrfs looks at all loop devices that are mounted anywhere, and gives up, before it writes, if one of them ends meanwhile.
	for tries := 1; tries < mkfsTries && err != nil && strings.Contains(err.Error(), "cannot check mount status"); tries++ {
		err = program(m[0], args...)
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Ready does what has to be done before a file system is mounted. An ext4 that says it is not to be trusted is checked, and one
// that is smaller than its device is checked and grown: that takes rights that a container may lack when it is mounted.
// Others stay as they are, for Grow.
func Ready(dev string, c Content, size int64, say func(string)) error {
	if c.Kind != "ext4" {
		return nil
	}
	larger := c.Size > 0 && size-c.Size >= max(c.least, 1)
	if c.Suspect || larger {
		say("checking the file system")
		if err := check(dev); err != nil {
			return err
		}
	}
	if !larger {
		return nil
	}
	say("growing the file system")
	return program("resize2fs", dev)
}

func check(dev string) error {
	err := program("e2fsck", "-fp", dev)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 { // what it found is corrected
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w; run e2fsck -f %s", err, dev)
	}
	return nil
}

// Grow makes a mounted file system as large as its device. One that is stays as it is.
func Grow(kind, dev, dir string) error {
	switch kind {
	case "ext4":
		return program("resize2fs", dev)
	case "xfs":
		return program("xfs_growfs", "-d", dir)
	case "btrfs":
		return program("btrfs", "filesystem", "resize", "max", dir)
	}
	return fmt.Errorf("%s: not a file system that can grow", kind)
}

// program runs a program to its end. What it says matters only if it fails. It is in a session of its own, where no terminal's signal
// reaches it, and what it writes goes to a file, which still is there when the caller is not.
func program(name string, args ...string) error {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	out := os.NewFile(uintptr(fd), name)
	defer out.Close()
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Run(); err != nil {
		said, _ := io.ReadAll(io.NewSectionReader(out, 0, 64<<10)) // for people
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(said)))
	}
	return nil
}
