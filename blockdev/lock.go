package blockdev

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process has a lock.
var ErrLocked = errors.New("locked by another process")

const (
	lockPatience = 3 * time.Second
	lockStep     = 5 * time.Millisecond
)

// LockFile takes a file's lock for this process, until the file is closed, and makes the file if there is none. Who
// had it and was killed may keep it for a moment: files are closed one after the other, and a program that it was
// about to start has them all until it begins. So LockFile tries for some seconds before it returns ErrLocked.
func LockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(lockStep) {
		switch err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case time.Now().After(deadline):
			f.Close()
			return nil, fmt.Errorf("%s: %w", path, ErrLocked)
		}
	}
}
