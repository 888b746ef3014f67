package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/nbd"
	"github.com/remora-storage/remora/conformance/faultdev"
	"github.com/remora-storage/remora/conformance/suite"
)

// TestHandshake: each option is answered as the specification says, and a client may go on after a refusal.
func TestHandshake(t *testing.T) {
	other := nbd.Export{Name: "other", Description: "a text", Device: blockdev.ReadOnly(suite.RAM(t, 4096))}
	socket := serve(t, nbd.Options{}, nbd.Export{Device: suite.RAM(t, 1<<20)}, other)
	c := dial(t, socket)
	c.hello()
	const ack, server, info, meta = 1, 2, 3, 4
	const unsupported, policy, invalid, unknown, tooBig = 1<<31 | 1, 1<<31 | 2, 1<<31 | 3, 1<<31 | 6, 1<<31 | 9
	go7 := func(name string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(len(name)))) + name + "\x00\x00"
	}
	ask := func(name, query string) string {
		p := string(binary.BigEndian.AppendUint32(nil, uint32(len(name)))) + name
		if query == "" {
			return p + "\x00\x00\x00\x00"
		}
		return p + "\x00\x00\x00\x01" + string(binary.BigEndian.AppendUint32(nil, uint32(len(query)))) + query
	}
	for _, s := range []struct {
		name string
		id   uint32
		data string
		want []uint32
	}{
		{"list", 3, "", []uint32{server, server, ack}},
		{"list with data", 3, "x", []uint32{invalid}},
		{"unknown option", 99, "abc", []uint32{unsupported}},
		{"peek", 4, "", []uint32{unsupported}},
		{"no TLS here", 5, "", []uint32{policy}},
		{"too long", 6, string(make([]byte, 1<<17)), []uint32{tooBig}},
		{"info, cut", 6, "\x00\x00", []uint32{invalid}},
		{"info, name beyond", 6, "\x00\x00\x00\xff\x00\x00", []uint32{invalid}},
		{"info, requests beyond", 6, "\x00\x00\x00\x00\x00\x05", []uint32{invalid}},
		{"info of nothing", 6, go7("nothing"), []uint32{unknown}},
		{"info", 6, go7(""), []uint32{info, info, info, ack}},
		{"info with a text", 6, go7("other"), []uint32{info, info, info, info, ack}},
		{"meta before structured replies", 10, ask("", "base:allocation"), []uint32{invalid}},
		{"structured with data", 8, "x", []uint32{invalid}},
		{"structured", 8, "", []uint32{ack}},
		{"list meta", 9, ask("", ""), []uint32{meta, ack}},
		{"list a namespace", 9, ask("", "base:"), []uint32{meta, ack}},
		{"set meta of nothing", 10, ask("nothing", "base:allocation"), []uint32{unknown}},
		{"set another meta", 10, ask("", "qemu:dirty"), []uint32{ack}},
		{"set meta, cut", 10, ask("", "base:allocation")[:12], []uint32{invalid}},
		{"set meta, too long", 10, ask("", "base:allocation") + "x", []uint32{invalid}},
		{"set meta", 10, ask("", "base:allocation"), []uint32{meta, ack}},
		{"go to nothing", 7, go7("nothing"), []uint32{unknown}},
		{"go", 7, go7("other"), []uint32{info, info, info, info, ack}},
	} {
		if got, text := c.option(s.id, s.data); fmt.Sprint(got) != fmt.Sprint(s.want) {
			t.Errorf("%s: %x %q, want %x", s.name, got, text, s.want)
		}
	}
	c.request(0, 1, 7, 0, 4, 1, 2, 3, 4)
	if h, e := c.reply(); h != 7 || e != uint32(unix.EPERM) {
		t.Errorf("write to a read-only export: %d, errno %d", h, e)
	}
}

// TestExportName is the oldest way to choose an export, with and without padding.
func TestExportName(t *testing.T) {
	socket := serve(t, nbd.Options{}, nbd.Export{Name: "a", Device: suite.RAM(t, 12345)})
	for flags, padding := range map[uint32]int{1: 124, 3: 0} {
		c := dial(t, socket)
		c.read(18)
		c.send(flags, optMagic, uint32(1), uint32(1), "a")
		p := c.read(10 + padding)
		if n := binary.BigEndian.Uint64(p); n != 12345 {
			t.Errorf("size %d", n)
		}
		c.request(0, 0, 1, 0, 8)
		if _, e := c.reply(); e != 0 {
			t.Errorf("read: errno %d", e)
		}
		c.read(8)
		c.request(0, 2, 0, 0, 0)
		c.ended()
	}
	c := dial(t, socket)
	c.hello()
	c.send(optMagic, uint32(1), uint32(1), "b")
	c.ended()
}

// TestErrors: each wrong request is refused by its error, and the connection goes on.
func TestErrors(t *testing.T) {
	const size = 1 << 20
	broken := func(err error) blockdev.Device {
		return faultdev.Faulty(suite.RAM(t, size), func(context.Context, blockdev.Op, int64, int64) error { return err })
	}
	for _, s := range []struct {
		name       string
		dev        blockdev.Device
		flags, cmd uint16
		off        uint64
		n          uint32
		want       unix.Errno
	}{
		{"read beyond", suite.RAM(t, size), 0, 0, size - 4, 8, unix.EINVAL},
		{"read far beyond", suite.RAM(t, size), 0, 0, 1 << 63, 8, unix.EINVAL},
		{"read too much", suite.RAM(t, 64<<20), 0, 0, 0, 33 << 20, unix.EINVAL},
		{"write beyond", suite.RAM(t, size), 0, 1, size - 4, 8, unix.ENOSPC},
		{"write too much", suite.RAM(t, 64<<20), 0, 1, 0, 33 << 20, unix.EINVAL},
		{"trim beyond", suite.RAM(t, size), 0, 4, size - 4, 8, unix.EINVAL},
		{"zero beyond", suite.RAM(t, size), 0, 6, size, 8, unix.ENOSPC},
		{"unknown command", suite.RAM(t, size), 0, 77, 0, 8, unix.EINVAL},
		{"unknown flag", suite.RAM(t, size), 1 << 9, 0, 0, 8, unix.EINVAL},
		{"status without context", suite.RAM(t, size), 0, 7, 0, 8, unix.EINVAL},
		{"half a block", byPages{suite.RAM(t, size)}, 0, 1, 1, 8, unix.EINVAL},
		{"trim, read-only", blockdev.ReadOnly(suite.RAM(t, size)), 0, 4, 0, 8, unix.EPERM},
		{"flush, read-only", blockdev.ReadOnly(suite.RAM(t, size)), 0, 3, 0, 0, 0},
		{"read fails", broken(unix.EIO), 0, 0, 0, 8, unix.EIO},
		{"read fails oddly", broken(unix.ELOOP), 0, 0, 0, 8, unix.EIO},
		{"no room", broken(unix.ENOSPC), 0, 1, 0, 8, unix.ENOSPC},
		{"quota", broken(unix.EDQUOT), 1, 1, 0, 8, unix.ENOSPC},
		{"flush fails", broken(unix.EIO), 0, 3, 0, 0, unix.EIO},
		{"no memory", broken(unix.ENOMEM), 0, 4, 0, 8, unix.ENOMEM},
		{"fast zeros that are not", plain{suite.RAM(t, size)}, 1 << 4, 6, 0, 8, unix.EOPNOTSUPP},
		{"cache fails", broken(unix.EACCES), 0, 5, 0, 8, unix.EPERM},
	} {
		c := start(t, serve(t, nbd.Options{}, nbd.Export{Device: s.dev}), false)
		var payload []byte
		if s.cmd == 1 {
			payload = make([]byte, s.n)
		}
		c.request(s.flags, s.cmd, 5, s.off, s.n, payload...)
		if h, e := c.reply(); h != 5 || e != uint32(s.want) {
			t.Errorf("%s: handle %d, errno %v, want %v", s.name, h, unix.Errno(e), s.want)
		}
		c.request(0, 3, 6, 0, 0) // it is still there
		if h, _ := c.reply(); h != 6 {
			t.Errorf("%s: the next request got %d", s.name, h)
		}
	}
}

// byPages is a Writer with blocks of a page.
type byPages struct{ blockdev.Writer }

func (byPages) BlockSize() int { return 4096 }

func (b byPages) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := blockdev.Check(b, off, int64(len(p))); err != nil {
		return err
	}
	return b.Writer.WriteAt(ctx, p, off)
}

// plain is a Writer without abilities.
type plain struct{ blockdev.Writer }

// TestStructured: reads come in chunks, errors with a text, and block status tells holes from data.
func TestStructured(t *testing.T) {
	dev := suite.RAM(t, 8<<20)
	data := bytes.Repeat([]byte{7}, 1<<20)
	if err := dev.WriteAt(context.Background(), data, 1<<20); err != nil {
		t.Fatal(err)
	}
	c := start(t, serve(t, nbd.Options{}, nbd.Export{Device: dev}), true)
	for _, df := range []uint16{0, 1 << 2} {
		c.request(df, 0, 3, 1<<20, 1<<20)
		got := make([]byte, 1<<20)
		for n := 0; ; n++ {
			flags, kind, h, p := c.chunk()
			if kind != 1 || h != 3 {
				t.Fatalf("chunk %d of %d", kind, h)
			}
			copy(got[binary.BigEndian.Uint64(p)-1<<20:], p[8:])
			if flags&1 != 0 {
				if df != 0 && n != 0 {
					t.Error("fragments that the client did not want")
				}
				break
			}
		}
		if !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
	}
	c.request(0, 0, 4, 0, 0)
	if _, kind, _, p := c.chunk(); kind != 0 || len(p) != 0 {
		t.Errorf("read of nothing: %d, %d bytes", kind, len(p))
	}
	c.request(0, 0, 4, 8<<20, 16)
	if flags, kind, _, p := c.chunk(); flags != 1 || kind != 1<<15|1 || binary.BigEndian.Uint32(p) != uint32(unix.EINVAL) ||
		!bytes.Contains(p, []byte("beyond the end")) {
		t.Errorf("read beyond: %d, %q", kind, p)
	}
	c.request(0, 7, 5, 0, 4<<20)
	_, kind, _, p := c.chunk()
	want := []uint32{1, 1 << 20, 3, 1 << 20, 0, 2 << 20, 3}
	for i, v := range want {
		if kind != 5 || len(p) != 4*len(want) || binary.BigEndian.Uint32(p[4*i:]) != v {
			t.Fatalf("status %d: %x", kind, p)
		}
	}
	c.request(1<<3, 7, 5, 1<<20, 4<<20)
	if _, _, _, p := c.chunk(); len(p) != 12 || binary.BigEndian.Uint32(p[4:]) != 1<<20 {
		t.Errorf("one extent: %x", p)
	}
	c.request(0, 4, 9, 0, 4096)
	if h, e := c.reply(); h != 9 || e != 0 {
		t.Errorf("trim: %d, %d", h, e)
	}
}

// slow answers after a while, and counts who waits.
func slow(t *testing.T, d time.Duration, now, most *atomic.Int32) blockdev.Device {
	return faultdev.Faulty(suite.RAM(t, 64<<20), func(ctx context.Context, _ blockdev.Op, _, _ int64) error {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// TestManyAtOnce: requests of one connection are carried out at the same time, up to a bound, and each is
// answered once.
func TestManyAtOnce(t *testing.T) {
	var now, most atomic.Int32
	c := start(t, serve(t, nbd.Options{}, nbd.Export{Device: slow(t, 20*time.Millisecond, &now, &most)}), false)
	const n = 2000
	go func() {
		for i := range uint64(n) {
			c.request(0, 1, i, i*512, 512, make([]byte, 512)...)
		}
	}()
	seen := map[uint64]bool{}
	for range n {
		h, e := c.reply()
		if e != 0 || seen[h] {
			t.Fatalf("handle %d again or errno %d", h, e)
		}
		seen[h] = true
	}
	if m := most.Load(); m < 64 || m > 256 {
		t.Errorf("at most %d requests at once", m)
	}
}

// TestStop: what was read is answered when the server is told to stop.
func TestStop(t *testing.T) {
	var now, most atomic.Int32
	s, err := nbd.New([]nbd.Export{{Device: slow(t, 200*time.Millisecond, &now, &most)}}, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	socket, stop, ended := running(t, s)
	c := start(t, socket, false)
	for i := range uint64(10) {
		c.request(0, 1, i, i*512, 512, make([]byte, 512)...)
	}
	for now.Load() < 10 {
		time.Sleep(time.Millisecond)
	}
	stop()
	for range 10 {
		if _, e := c.reply(); e != 0 {
			t.Errorf("errno %d", e)
		}
	}
	c.ended()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestGoneClient: a client that comes back finds nothing of its broken connection still on its way. Its writes
// land before the new connection's first request, or never.
func TestGoneClient(t *testing.T) {
	release := make(chan struct{})
	var waiting atomic.Int32
	dev := suite.RAM(t, 1<<20)
	stuck := faultdev.Faulty(dev, func(_ context.Context, op blockdev.Op, off, _ int64) error {
		if op == blockdev.OpWrite && off == 0 && waiting.Add(1) == 1 {
			<-release // not to be told to leave, as a disk's writes are not
		}
		return nil
	})
	socket := serve(t, nbd.Options{}, nbd.Export{Device: stuck})
	old := start(t, socket, false)
	old.request(0, 1, 1, 0, 4, 'o', 'l', 'd', '!')
	for waiting.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	old.request(0, 1, 2, 0, 4, 'o', 'l', 'd', '2')
	old.Close()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		c := start(t, socket, false)
		c.request(0, 1, 1, 0, 4, 'n', 'e', 'w', '!')
		c.reply()
	}()
	select {
	case <-answered:
		t.Error("the new connection's write was carried out while the old one's was")
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	<-answered
	p := make([]byte, 4)
	if _, err := dev.ReadAt(context.Background(), p, 0); err != nil || string(p) != "new!" {
		t.Errorf("%q, %v: a stale write landed late", p, err)
	}
}

// TestClients: no more than the bound are served, the next one waits.
func TestClients(t *testing.T) {
	socket := serve(t, nbd.Options{Clients: 2}, nbd.Export{Device: suite.RAM(t, 4096)})
	a, b := start(t, socket, false), start(t, socket, false)
	c := dial(t, socket)
	if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a third client was served %d bytes", n)
	}
	a.request(0, 2, 0, 0, 0)
	a.ended()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c.hello()
	b.request(0, 0, 1, 0, 8)
	b.reply()
}

// TestBadMagic ends its own connection and no other.
func TestBadMagic(t *testing.T) {
	socket := serve(t, nbd.Options{}, nbd.Export{Device: suite.RAM(t, 4096)})
	good, bad := start(t, socket, false), start(t, socket, false)
	bad.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	bad.ended()
	good.request(0, 0, 1, 0, 8)
	if h, e := good.reply(); h != 1 || e != 0 {
		t.Errorf("%d, errno %d", h, e)
	}
}

// TestUnreadAnswers: a client that reads no answers takes no more memory than it may, holds up nobody else, and
// does not keep the server from stopping.
func TestUnreadAnswers(t *testing.T) {
	dev := plain{suite.RAM(t, 64<<20)} // not in memory that could be sent from
	socket := serve(t, nbd.Options{}, nbd.Export{Device: dev})
	lazy := start(t, socket, false)
	for i := range uint64(600) {
		lazy.request(0, 0, i, 0, 1<<20)
	}
	c := start(t, socket, false)
	for i := range uint64(100) {
		c.request(0, 0, i, i*4096, 4096)
		c.reply()
		c.read(4096)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapInuse > 128<<20 {
		t.Errorf("%d MiB in use", m.HeapInuse>>20)
	}
}

// TestAllocations: requests in steady state allocate nothing, whatever the device.
func TestAllocations(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector allocates")
	}
	for name, dev := range map[string]blockdev.Device{
		"memory": suite.RAM(t, 64<<20), "by workers": plain{suite.RAM(t, 64<<20)}, "file": suite.File(t, 64<<20, blockdev.FileOptions{}),
	} {
		for _, structured := range []bool{false, true} {
			c := start(t, serve(t, nbd.Options{}, nbd.Export{Device: dev}), structured)
			round := requests(c, structured)
			for range 20 {
				round()
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			const rounds = 200
			for range rounds {
				round()
			}
			runtime.ReadMemStats(&after)
			// The runtime itself allocates now and then, as for a goroutine that waits in a new way.
			if n := float64(after.Mallocs-before.Mallocs) / (rounds * 32); n > 0.05 {
				t.Errorf("%s, structured %v: %.3f allocations a request", name, structured, n)
			}
		}
	}
}

// requests returns what sends 16 reads and 16 writes and takes their answers, without allocating.
func requests(c *client, structured bool) func() {
	var out []byte
	for i := range uint64(32) {
		p := binary.BigEndian.AppendUint32(nil, requestMagic)
		p = binary.BigEndian.AppendUint16(p, 0)
		p = binary.BigEndian.AppendUint16(p, uint16(i%2))
		p = binary.BigEndian.AppendUint64(p, i)
		p = binary.BigEndian.AppendUint64(p, i*8192)
		p = binary.BigEndian.AppendUint32(p, 4096)
		out = append(out, p...)
		if i%2 == 1 {
			out = append(out, make([]byte, 4096)...)
		}
	}
	n := 32*16 + 16*4096
	if structured {
		n += 16 * (20 + 8 - 16)
	}
	in := make([]byte, n)
	return func() {
		if _, err := c.Write(out); err != nil {
			c.t.Fatal(err)
		}
		for got := 0; got < n; {
			k, err := c.Read(in[got:])
			if err != nil {
				c.t.Fatal(err)
			}
			got += k
		}
	}
}
