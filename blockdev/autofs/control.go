package autofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// control takes calls about autofs mounts: struct autofs_dev_ioctl of <linux/auto_dev-ioctl.h>, in the machine's byte order.
//
//	offset  size  field
//	0       8     version of the interface: major, minor
//	8       4     bytes of all, with the path
//	12      4     descriptor of the mount, or -1
//	16      8     arguments: two numbers, by call
//	24            path, for those calls that have one, and a zero
const (
	control  = "/dev/autofs"
	callSize = 24
	major    = 1
	minor    = 1

	openMount = 0x74
	ready     = 0x76
	fail      = 0x77
	catatonic = 0x79
)

// A call is about one mount.
type call struct {
	dev *os.File
	fd  int32
}

// onMount does something to the autofs mount on a directory, whatever is mounted over it.
func onMount(dir string, device uint32, do func(*call) error) (err error) {
	dev, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dev.Close() // nothing is written through it
	p := make([]byte, callSize+len(dir)+1)
	copy(p[callSize:], dir)
	c := &call{dev: dev, fd: -1}
	if err := c.call(openMount, p, device, 0); err != nil {
		return fmt.Errorf("open autofs mount on %s: %w", dir, err)
	}
	c.fd = int32(binary.NativeEndian.Uint32(p[12:]))
	defer func() { err = errors.Join(err, unix.Close(int(c.fd))) }()
	return do(c)
}

func (c *call) do(nr uintptr, first, second uint32) error {
	return c.call(nr, make([]byte, callSize), first, second)
}

func (c *call) call(nr uintptr, p []byte, first, second uint32) error {
	binary.NativeEndian.PutUint32(p, major)
	binary.NativeEndian.PutUint32(p[4:], minor)
	binary.NativeEndian.PutUint32(p[8:], uint32(len(p)))
	binary.NativeEndian.PutUint32(p[12:], uint32(c.fd))
	binary.NativeEndian.PutUint32(p[16:], first)
	binary.NativeEndian.PutUint32(p[20:], second)
	const readWrite = 3 << 30
	request := uintptr(readWrite | callSize<<16 | 0x93<<8 | int(nr)) // _IOWR(AUTOFS_IOCTL, nr, struct autofs_dev_ioctl)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, c.dev.Fd(), request, uintptr(unsafe.Pointer(&p[0]))); errno != 0 {
		return fmt.Errorf("call %#x of %s: %w", nr, control, errno)
	}
	return nil
}
