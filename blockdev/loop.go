package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Loop is a loop device on a file. It goes away by itself when its last user has, once
// Release was called.
type Loop struct {
	f    *os.File
	path string
}

const loopAttempts = 64 // others may take the free device between asking for it and taking it

// LoopOptions say how a loop device is set up. The zero value is read-only and ends with its last user.
type LoopOptions struct {
	Writable bool
	Stays    bool // until DetachLoop
	Direct   bool // past the page cache of the file
	Sector   int  // bytes of a logical block, 512 or 4096 (0)
}

// AttachLoop sets up a read-only loop device on the file at path.
func AttachLoop(path string) (*Loop, error) { return AttachLoopOn(path, LoopOptions{}) }

// AttachLoopOn sets up a loop device on the file at path.
func AttachLoopOn(path string, opts LoopOptions) (*Loop, error) {
	mode, flags := os.O_RDONLY, uint32(unix.LO_FLAGS_READ_ONLY)
	if opts.Writable {
		mode, flags = os.O_RDWR, 0
	}
	if !opts.Stays {
		flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	if opts.Direct {
		flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if opts.Sector == 0 {
		opts.Sector = pageSize
	}
	back, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop device for %s: %w (is the loop module loaded?)", path, err)
	}
	defer control.Close()
	for range loopAttempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev := "/dev/loop" + strconv.Itoa(n)
		f, err := os.OpenFile(dev, mode, 0)
		if errors.Is(err, os.ErrNotExist) { // no devtmpfs keeps the nodes here
			if err := unix.Mknod(dev, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
				return nil, fmt.Errorf("make %s: %w", dev, err)
			}
			f, err = os.OpenFile(dev, mode, 0)
		}
		if err != nil {
			return nil, err
		}
		cfg := unix.LoopConfig{Fd: uint32(back.Fd()), Size: uint32(opts.Sector)}
		cfg.Info.Flags = flags
		copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], path)
		err = unix.IoctlLoopConfigure(int(f.Fd()), &cfg)
		if err == nil {
			return &Loop{f: f, path: dev}, nil
		}
		f.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("set up %s on %s: %w", dev, path, err)
		}
	}
	return nil, fmt.Errorf("loop device for %s: others took each free one %d times", path, loopAttempts)
}

// Path returns the device.
func (l *Loop) Path() string { return l.path }

// Release lets the device go once nobody uses it, for example after it was mounted.
func (l *Loop) Release() error { return l.f.Close() }

// A LoopFile is a loop device and the file that it is set up on.
type LoopFile struct{ Dev, File string }

// LoopFiles returns the loop devices that are set up.
func LoopFiles() (all []LoopFile, err error) {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range names {
		if p, err := os.ReadFile(name); err == nil { // others end meanwhile
			all = append(all, LoopFile{"/dev/" + strings.Split(name, "/")[3], strings.TrimSuffix(string(p), "\n")})
		}
	}
	return all, err
}

// LoopFileOf returns the file that a loop device is set up on.
func LoopFileOf(dev string) (string, error) {
	p, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev), "loop/backing_file"))
	return strings.TrimSuffix(string(p), "\n"), err
}

// FindLoop returns the loop device that is set up on the file at path, or "".
func FindLoop(path string) (string, error) {
	all, err := LoopFiles()
	for _, l := range all {
		if l.File == path {
			return l.Dev, nil
		}
	}
	return "", err
}

// LoopSetup returns what tells apart all times that loop devices of this boot were set up, of one that is. It does not ask the device's
// file, which may not answer.
func LoopSetup(dev string) (string, error) {
	dir := filepath.Join("/sys/block", filepath.Base(dev))
	if _, err := os.Stat(filepath.Join(dir, "loop/backing_file")); err != nil {
		return "", err
	}
	seq, err := os.ReadFile(filepath.Join(dir, "diskseq"))
	return strings.TrimSpace(string(seq)), err
}

// DetachLoop ends a loop device that nobody uses: that is not mounted, and that nobody has open. What was written to it has
// reached the file then. EBUSY says that somebody does; the device stays as it was. held is called once nobody can mount the device, and
// what it returns when that is so no longer.
func DetachLoop(dev string, held func() (end func())) error {
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		f, err = os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	defer held()()
	if err := byAnother(f.Sync, "sync", dev); err != nil { // what was written reaches the file
		return err
	}
	if err := clearLoop(f); err != nil {
		return err
	}
	// The kernel counts who has it open. One that others have stays, and would go with the last of them.
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err == nil {
		info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopSetStatus64(int(f.Fd()), info)
	}
	if err == nil {
		err = unix.EBUSY
	}
	return &os.PathError{Op: "detach", Path: dev, Err: err}
}

// byAnother has another process do what waits for a loop device's file: it is this one that may serve that. Killed meanwhile, this one
// would stay in the kernel until somebody answers, with all that it has open and locked, and whoever is to answer in its place waits for
// the end of it. Or it would leave a device without bytes. Where the program is not installed, otherwise does it here.
func byAnother(otherwise func() error, program, dev string, args ...string) error {
	c := exec.Command(program, append(args, dev)...)
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a Ctrl-C is not for it
	says, err := c.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return otherwise()
	}
	if err != nil {
		return &os.PathError{Op: program, Path: dev, Err: fmt.Errorf("%w: %s", err, bytes.TrimSpace(says))}
	}
	return nil
}

// DropLoop ends a loop device when its last user goes, whoever that is, and at once if there is none. Nothing is flushed.
func DropLoop(dev string) error {
	f, err := os.OpenFile(dev, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return clearLoop(f)
}

// GrowLoop gives a loop device the size that its file has now.
func GrowLoop(dev string) error {
	return byAnother(func() error {
		f, err := os.OpenFile(dev, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
			return &os.PathError{Op: "grow", Path: dev, Err: err}
		}
		return nil
	}, "losetup", dev, "--set-capacity")
}

// clearLoop ends a loop device, or marks one that is in use to be ended with its last user (loop_clr_fd in the kernel's
// drivers/block/loop.c).
func clearLoop(f *os.File) error {
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		return &os.PathError{Op: "detach", Path: f.Name(), Err: err}
	}
	return nil
}
