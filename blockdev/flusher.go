package blockdev

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// IOFlusher tells the kernel that it may need this process to get memory back: what it allocates for our system calls
// must then not wait for pages that only we can write. It holds for all threads there are and for those they start.
// On the way of a write this process must not touch the page cache of another file either.
func IOFlusher() error {
	if _, _, err := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0); err != 0 {
		return fmt.Errorf("become an I/O flusher: %w", err)
	}
	return nil
}
