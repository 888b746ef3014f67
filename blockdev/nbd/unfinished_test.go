package nbd_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/remora-storage/remora/blockdev/nbd"
	"github.com/remora-storage/remora/conformance/suite"
)

// tcp serves a device to all addresses of loopback until the test ends, and returns the port.
func tcp(t *testing.T, opts nbd.Options) (port string) {
	t.Helper()
	s, err := nbd.New([]nbd.Export{{Device: suite.RAM(t, 4096)}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// from connects from one of loopback's addresses, and returns when the server has greeted.
func from(t *testing.T, addr, port string) *client {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}).DialContext(t.Context(), "tcp4", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &client{t, conn}
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c.read(18)
	return c
}

// sentAway waits for the server to say something to a client that says nothing, and reports whether that was the end.
func (c *client) sentAway() bool {
	c.t.Helper()
	_, err := io.ReadFull(c, make([]byte, 1))
	return err != nil
}

// choose ends a handshake: the client gets the export.
func (c *client) choose() {
	c.t.Helper()
	c.send(uint32(3), optMagic, uint32(1), uint32(0))
	c.read(10)
	c.request(0, 0, 1, 0, 8)
	c.reply()
	c.read(8)
}

// TestUnfinishedOfOneAddress: clients that never finish their handshake keep out nobody, of their own address or another. The
// oldest of the address goes for a new one, and no other address's.
func TestUnfinishedOfOneAddress(t *testing.T) {
	port := tcp(t, nbd.Options{Clients: 2})
	other := from(t, "127.0.0.2", port)
	var silent []*client
	for range 6 {
		silent = append(silent, from(t, "127.0.0.1", port))
	}
	for i, c := range silent[:4] {
		if !c.sentAway() {
			t.Errorf("client %d of an address that may have two handshakes was not sent away", i)
		}
	}
	from(t, "127.0.0.1", port).choose() // for it, the oldest is sent away
	if !silent[4].sentAway() {
		t.Error("the oldest was not sent away")
	}
	other.choose() // it came first of all
}

// TestUnfinishedInTotal: the handshakes of all addresses together have a bound as well.
func TestUnfinishedInTotal(t *testing.T) {
	port := tcp(t, nbd.Options{Clients: 1})
	var silent []*client
	for _, addr := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"} {
		silent = append(silent, from(t, addr, port))
	}
	from(t, "127.0.0.5", port).choose()
	if !silent[0].sentAway() {
		t.Error("a fifth handshake began beside four, which are the most")
	}
}

// TestFinishedWaits: clients that finish their handshake together wait for the room that there is.
func TestFinishedWaits(t *testing.T) {
	port := tcp(t, nbd.Options{Clients: 1})
	a, b := from(t, "127.0.0.1", port), from(t, "127.0.0.2", port)
	a.choose()
	b.send(uint32(3), optMagic, uint32(1), uint32(0))
	a.request(0, 0, 1, 0, 8)
	a.reply()
	a.read(8)
	a.request(0, 2, 0, 0, 0)
	a.ended()
	b.read(10)
	b.request(0, 0, 1, 0, 8)
	b.reply()
}
