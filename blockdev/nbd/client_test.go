package nbd_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/remora-storage/remora/blockdev/nbd"
)

// serve serves a device without a name on a socket until the test ends, and returns the socket.
func serve(t testing.TB, opts nbd.Options, exports ...nbd.Export) string {
	t.Helper()
	s, err := nbd.New(exports, opts)
	if err != nil {
		t.Fatal(err)
	}
	socket, stop, ended := running(t, s)
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// client speaks the protocol byte by byte, so that it can also speak it wrongly.
type client struct {
	t testing.TB
	net.Conn
}

func dial(t testing.TB, socket string) *client {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &client{t, c}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	p, err := c.next(n)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// next returns the next bytes that the server sends.
func (c *client) next(n int) ([]byte, error) {
	p := make([]byte, n)
	_, err := io.ReadFull(c, p)
	return p, err
}

func (c *client) send(parts ...any) {
	c.t.Helper()
	var p []byte
	for _, v := range parts {
		switch v := v.(type) {
		case []byte:
			p = append(p, v...)
		case string:
			p = append(p, v...)
		case uint16:
			p = binary.BigEndian.AppendUint16(p, v)
		case uint32:
			p = binary.BigEndian.AppendUint32(p, v)
		case uint64:
			p = binary.BigEndian.AppendUint64(p, v)
		default:
			c.t.Fatalf("send %T", v)
		}
	}
	if _, err := c.Write(p); err != nil && !errors.Is(err, net.ErrClosed) {
		c.t.Logf("send: %v", err)
	}
}

const (
	optMagic     = uint64(0x49484156454F5054)
	requestMagic = uint32(0x25609513)
)

func (c *client) hello() {
	c.t.Helper()
	if p := c.read(18); string(p[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(p[16:]) != 3 {
		c.t.Fatalf("hello %q", p)
	}
	c.send(uint32(3))
}

// option sends an option and returns the types of the answers, up to the last one, and its text.
func (c *client) option(id uint32, data string) (kinds []uint32, text string) {
	c.t.Helper()
	c.send(optMagic, id, uint32(len(data)), data)
	for {
		h := c.read(20)
		kind := binary.BigEndian.Uint32(h[12:])
		text = string(c.read(int(binary.BigEndian.Uint32(h[16:]))))
		kinds = append(kinds, kind)
		if got := binary.BigEndian.Uint32(h[8:]); got != id {
			c.t.Fatalf("answer to option %d, not %d", got, id)
		}
		if kind == 1 || kind&(1<<31) != 0 {
			return kinds, text
		}
	}
}

// start goes to the export without a name.
func start(t testing.TB, socket string, structured bool) *client {
	t.Helper()
	c := dial(t, socket)
	c.hello()
	if structured {
		c.option(8, "")
		c.option(10, "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation")
	}
	if kinds, text := c.option(7, "\x00\x00\x00\x00\x00\x00"); kinds[len(kinds)-1] != 1 {
		t.Fatalf("GO: %x %s", kinds, text)
	}
	return c
}

func (c *client) request(flags, cmd uint16, handle, off uint64, n uint32, payload ...byte) {
	c.t.Helper()
	c.send(requestMagic, flags, cmd, handle, off, n, payload)
}

// reply reads a simple reply.
func (c *client) reply() (handle uint64, errno uint32) {
	c.t.Helper()
	handle, errno, err := c.nextReply()
	if err != nil {
		c.t.Fatal(err)
	}
	return handle, errno
}

func (c *client) nextReply() (handle uint64, errno uint32, err error) {
	h, err := c.next(16)
	if m := binary.BigEndian.Uint32(h); err == nil && m != 0x67446698 {
		err = fmt.Errorf("reply %#x", m)
	}
	return binary.BigEndian.Uint64(h[8:]), binary.BigEndian.Uint32(h[4:]), err
}

// chunk reads one chunk of a structured reply.
func (c *client) chunk() (flags, kind uint16, handle uint64, data []byte) {
	c.t.Helper()
	flags, kind, handle, data, err := c.nextChunk()
	if err != nil {
		c.t.Fatal(err)
	}
	return flags, kind, handle, data
}

func (c *client) nextChunk() (flags, kind uint16, handle uint64, data []byte, err error) {
	h, err := c.next(20)
	if m := binary.BigEndian.Uint32(h); err == nil && m != 0x668e33ef {
		err = fmt.Errorf("chunk %#x", m)
	}
	if err == nil {
		data, err = c.next(int(binary.BigEndian.Uint32(h[16:])))
	}
	return binary.BigEndian.Uint16(h[4:]), binary.BigEndian.Uint16(h[6:]), binary.BigEndian.Uint64(h[8:]), data, err
}

// ended fails unless the server has closed the connection.
func (c *client) ended() {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, io.EOF) {
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			c.t.Error("the server does not close the connection")
		}
	}
}
