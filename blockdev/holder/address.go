package holder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketFile = "holder.sock"
	lockFile   = "holder.lock"
	network    = "unixpacket"
)

// withRoot calls use with a short name of a root directory: a socket's path must fit 108 bytes.
func withRoot(root string, use func(dir string) error) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(fd)
	return use("/proc/self/fd/" + strconv.Itoa(fd))
}

// listen takes a root for this process and makes its socket.
func listen(root string) (l *net.UnixListener, lock *os.File, err error) {
	lock, err = os.OpenFile(filepath.Join(root, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err := takeLock(int(lock.Fd())); err != nil {
		lock.Close()
		return nil, nil, fmt.Errorf("lock %s: %w (is there a holder already?)", filepath.Join(root, lockFile), err)
	}
	err = withRoot(root, func(dir string) error {
		path := filepath.Join(dir, socketFile)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l, err = net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false) // the name is of this moment only
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		lock.Close()
		return nil, nil, fmt.Errorf("listen in %s: %w", root, err)
	}
	return l, lock, nil
}

const (
	lockPatience = 2 * time.Second
	lockStep     = 5 * time.Millisecond
)

// takeLock takes the lock of a root. A holder that was just killed lets go of its socket, by which
// its daemon learns of that, before it lets go of the lock.
func takeLock(fd int) error {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(lockStep) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

// dial connects to a root's holder.
func dial(ctx context.Context, root string) (c *net.UnixConn, err error) {
	err = withRoot(root, func(dir string) error {
		conn, err := new(net.Dialer).DialContext(ctx, network, filepath.Join(dir, socketFile))
		if err == nil {
			c = conn.(*net.UnixConn)
		}
		return err
	})
	return c, err
}
