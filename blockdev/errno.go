package blockdev

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/cache"
)

// Errno is what a caller in the kernel sees of a device's error.
func Errno(err error) unix.Errno {
	switch {
	case errors.Is(err, ErrReadOnly):
		return unix.EROFS
	case errors.Is(err, ErrRange):
		return unix.ENOSPC
	case errors.Is(err, ErrAlignment):
		return unix.EINVAL
	case errors.Is(err, ErrNotFast):
		return unix.EOPNOTSUPP
	}
	return cache.Errno(err)
}
