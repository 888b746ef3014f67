package blockdev_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
)

// TestErrno: whoever reads in the kernel sees a few errors only, and an unknown one is never taken for success.
func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want unix.Errno
	}{
		{nil, 0},
		{blockdev.ErrReadOnly, unix.EROFS},
		{blockdev.ErrRange, unix.ENOSPC},
		{blockdev.ErrAlignment, unix.EINVAL},
		{blockdev.ErrNotFast, unix.EOPNOTSUPP},
		{context.Canceled, unix.EINTR},
		{context.DeadlineExceeded, unix.EIO},
		{unix.ENOSPC, unix.ENOSPC},
		{unix.ENOMEM, unix.ENOMEM},
		{unix.EACCES, unix.EIO},
		{unix.ENOENT, unix.EIO},
		{fs.ErrNotExist, unix.EIO},
		{os.ErrClosed, unix.EIO},
		{errors.New("a registry's"), unix.EIO},
	} {
		if got := blockdev.Errno(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
		if c.err == nil {
			continue
		}
		if got := blockdev.Errno(fmt.Errorf("read x at 1: %w", c.err)); got != c.want {
			t.Errorf("%v, wrapped: %v, want %v", c.err, got, c.want)
		}
	}
}

// TestCaller: the process travels with the context.
func TestCaller(t *testing.T) {
	ctx := context.Background()
	if pid := blockdev.Caller(ctx); pid != 0 {
		t.Errorf("nobody's process is %d", pid)
	}
	if pid := blockdev.Caller(blockdev.WithCaller(ctx, 42)); pid != 42 {
		t.Errorf("process %d, want 42", pid)
	}
}
