package peer

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Of returns the process and the user that connected, or that listened when this end connected.
func Of(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("who is at the other end: %w", err)
	}
	return cred, nil
}
