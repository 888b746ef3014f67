package nbd

import (
	"context"
	"errors"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
)

// Errors of the protocol have the numbers of Linux.
const (
	errIO       = uint32(unix.EIO)
	errNoMemory = uint32(unix.ENOMEM)
	errNoSpace  = uint32(unix.ENOSPC)
	errNotSup   = uint32(unix.EOPNOTSUPP)
	errShutdown = uint32(unix.ESHUTDOWN)
)

// nbdError says what a client is told of an error.
func nbdError(err error) uint32 {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, blockdev.ErrReadOnly):
		return protocol.TRANSMISSION_ERROR_EPERM
	case errors.Is(err, blockdev.ErrRange), errors.Is(err, blockdev.ErrAlignment):
		return protocol.TRANSMISSION_ERROR_EINVAL
	case errors.Is(err, blockdev.ErrNotFast):
		return errNotSup
	case errors.Is(err, context.Canceled):
		return errShutdown
	case errors.As(err, &errno):
		switch errno {
		case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
			return errNoSpace
		case unix.ENOMEM:
			return errNoMemory
		case unix.EPERM, unix.EACCES, unix.EROFS:
			return protocol.TRANSMISSION_ERROR_EPERM
		}
	}
	return errIO
}

// rangeError is the error of a request beyond the end: of a write that there is no room.
func rangeError(err error, cmd uint16) uint32 {
	writes := cmd == protocol.TRANSMISSION_TYPE_REQUEST_WRITE || cmd == cmdZeroes
	if writes && errors.Is(err, blockdev.ErrRange) {
		return errNoSpace
	}
	return nbdError(err)
}
