package cache

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Errno is what a reader sees of an error: that of the system if there is one, EINTR if it was
// told to leave, EIO otherwise.
func Errno(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return unix.EINTR
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, os.ErrClosed):
		return unix.EIO
	case errors.As(err, &errno) && (errno == unix.ENOSPC || errno == unix.ENOMEM):
		return errno
	}
	return unix.EIO
}
