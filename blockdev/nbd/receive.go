package nbd

import (
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiver reads a socket: small things many at a time, large payloads straight to where they belong.
type receiver struct {
	sock net.Conn
	raw  syscall.RawConn // nil for TLS

	in       []byte // bytes read and not yet understood are in[pos:end]
	pos, end int
	exact    bool // large payloads come: read no more than is needed, so that they are not copied

	idle  func() // to be called before readv waits, once; nil if there is nothing to call
	fills int    // large payloads since idle was called last

	// Of one system call.
	iov   [2]unix.Iovec
	n     int
	errno syscall.Errno
	readv func(fd uintptr) bool
}

const (
	inSize     = 64 << 10
	bigPayload = 32 << 10 // bytes from which on a copy costs more than a system call
	mostFills  = 8        // large payloads that are read one after the other before answers are sent
)

// rawConn returns a connection's socket for system calls of our own, nil if it has none, as TLS.
func rawConn(sock net.Conn) syscall.RawConn {
	c, ok := sock.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

func newReceiver(sock net.Conn) *receiver {
	r := &receiver{sock: sock, raw: rawConn(sock), in: make([]byte, inSize)}
	r.readv = func(fd uintptr) bool {
		for {
			n, _, err := unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&r.iov)), uintptr(len(r.iov)))
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN && r.idle != nil:
				r.beIdle()
			default:
				r.n, r.errno = int(n), err
				return err != unix.EAGAIN
			}
		}
	}
	return r
}

// more reports whether something of the next request is here.
func (r *receiver) more() bool { return r.end > r.pos }

// need returns the next n bytes, at most inSize. It calls idle before it waits for the socket.
func (r *receiver) need(n int, idle func()) ([]byte, error) {
	for r.end-r.pos < n {
		if r.pos > 0 {
			copy(r.in, r.in[r.pos:r.end])
			r.pos, r.end = 0, r.end-r.pos
		}
		room := r.in[r.end:]
		if r.exact {
			room = r.in[r.end:n]
		}
		idle()
		k, err := r.sock.Read(room)
		if k == 0 && err != nil {
			return nil, err
		}
		r.end += k
	}
	p := r.in[r.pos : r.pos+n]
	r.pos += n
	return p, nil
}

// fill reads a payload. It calls idle before it waits for the socket, and now and then when it does not.
func (r *receiver) fill(p []byte, idle func()) error {
	r.exact = len(p) >= bigPayload
	if !r.exact {
		q, err := r.need(len(p), idle)
		copy(p, q)
		return err
	}
	n := copy(p, r.in[r.pos:r.end])
	r.pos += n
	if p = p[n:]; len(p) == 0 {
		return nil
	}
	if r.raw == nil {
		idle()
		_, err := io.ReadFull(r.sock, p)
		return err
	}
	r.idle = idle
	if r.fills++; r.fills == mostFills {
		r.beIdle()
	}
	// The next request's header comes with the payload if it is there.
	r.pos, r.end = 0, 0
	for len(p) > 0 {
		r.iov[0].Base, r.iov[1].Base = &p[0], &r.in[0]
		r.iov[0].SetLen(len(p))
		r.iov[1].SetLen(requestLen)
		if err := r.raw.Read(r.readv); err != nil {
			return err
		}
		switch {
		case r.errno != 0:
			return r.errno
		case r.n == 0:
			return io.ErrUnexpectedEOF
		}
		k := min(r.n, len(p))
		p, r.end = p[k:], r.n-k
	}
	r.iov, r.idle = [2]unix.Iovec{}, nil
	return nil
}

func (r *receiver) beIdle() {
	idle := r.idle
	r.idle, r.fills = nil, 0
	idle()
}

// skip reads a payload that nobody wants.
func (r *receiver) skip(n int, idle func()) error {
	r.exact = false
	for n > 0 {
		k := min(n, inSize)
		if _, err := r.need(k, idle); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
