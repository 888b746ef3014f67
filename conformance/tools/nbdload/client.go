package nbdload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A Conn is a connection to an export, ready for requests.
type Conn struct {
	f          *os.File // blocking
	fd         int
	Size       int64
	Structured bool
}

const (
	optMagic   = 0x49484156454F5054
	optReply   = 0x3e889045565a9
	magic      = 0x25609513
	simple     = 0x67446698
	structured = 0x668e33ef
	header     = 28
)

// Dial connects to the export without a name. withStructured asks for structured replies.
func Dial(network, addr string, withStructured bool) (*Conn, error) {
	nc, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	fc, ok := nc.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%s has no descriptor", network)
	}
	f, err := fc.File() // a blocking duplicate
	if err != nil {
		return nil, err
	}
	c := &Conn{f: f, fd: int(f.Fd()), Structured: withStructured}
	if err := errors.Join(unix.SetNonblock(c.fd, false), c.handshake()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return c, nil
}

// Close ends the connection without a word.
func (c *Conn) Close() error { return c.f.Close() }

func (c *Conn) handshake() error {
	p := make([]byte, 18)
	if _, err := io.ReadFull(c, p); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(p[8:]) != optMagic {
		return errors.New("no fixed newstyle server")
	}
	if err := c.write(binary.BigEndian.AppendUint32(nil, 3)); err != nil {
		return err
	}
	if c.Structured {
		if err := c.option(8, nil); err != nil {
			return err
		}
	}
	return c.option(7, make([]byte, 6)) // GO, no name, no requests
}

func (c *Conn) option(id uint32, data []byte) error {
	p := binary.BigEndian.AppendUint64(nil, optMagic)
	p = binary.BigEndian.AppendUint32(p, id)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	if err := c.write(append(p, data...)); err != nil {
		return err
	}
	for {
		h := make([]byte, 20)
		if _, err := io.ReadFull(c, h); err != nil {
			return err
		}
		kind, n := binary.BigEndian.Uint32(h[12:]), binary.BigEndian.Uint32(h[16:])
		if binary.BigEndian.Uint64(h) != optReply || n > 1<<16 {
			return errors.New("not an option's reply")
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(c, body); err != nil {
			return err
		}
		switch {
		case kind == 1:
			return nil
		case kind&(1<<31) != 0:
			return fmt.Errorf("option %d refused: %#x %s", id, kind, body)
		case kind == 3 && n >= 10 && binary.BigEndian.Uint16(body) == 0:
			c.Size = int64(binary.BigEndian.Uint64(body[2:]))
		}
	}
}

// Read reads from the socket.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		return max(n, 0), err
	}
}

func (c *Conn) write(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(c.fd, p)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		p = p[max(n, 0):]
	}
	return nil
}
