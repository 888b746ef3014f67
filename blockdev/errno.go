package blockdev

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Errno is what a caller in the kernel sees of a device's error: 0 of none, that of the contract's errors, EINTR
// if the caller was told to leave, the system's where memory or room ran out, and EIO otherwise.
func Errno(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrReadOnly):
		return unix.EROFS
	case errors.Is(err, ErrRange):
		return unix.ENOSPC
	case errors.Is(err, ErrAlignment):
		return unix.EINVAL
	case errors.Is(err, ErrNotFast):
		return unix.EOPNOTSUPP
	case errors.Is(err, context.Canceled):
		return unix.EINTR
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, os.ErrClosed):
		return unix.EIO
	case errors.As(err, &errno) && (errno == unix.ENOSPC || errno == unix.ENOMEM):
		return errno
	}
	return unix.EIO
}
