package blockdev

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Loop is a loop device on a file. It goes away by itself when its last user has, once
// Release was called.
type Loop struct {
	f    *os.File
	path string
}

const loopAttempts = 64 // others may take the free device between asking for it and taking it

// AttachLoop sets up a read-only loop device on the file at path.
func AttachLoop(path string) (*Loop, error) { return attachLoop(path, false) }

// AttachLoopWritable sets up a loop device that can be written to.
func AttachLoopWritable(path string) (*Loop, error) { return attachLoop(path, true) }

func attachLoop(path string, writable bool) (*Loop, error) {
	mode, flags := os.O_RDONLY, uint32(unix.LO_FLAGS_READ_ONLY|unix.LO_FLAGS_AUTOCLEAR)
	if writable {
		mode, flags = os.O_RDWR, unix.LO_FLAGS_AUTOCLEAR
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
		cfg := unix.LoopConfig{Fd: uint32(back.Fd()), Size: 4096}
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
