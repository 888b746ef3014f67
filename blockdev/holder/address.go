package holder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
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
	lock, err = blockdev.LockFile(filepath.Join(root, lockFile))
	if err != nil {
		return nil, nil, fmt.Errorf("%w (is there a holder already?)", err)
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
