package nbd_test

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/nbd"
	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/conformance/suite"
)

// talk sends bytes to a server that expects them at some point of the protocol, and reads whatever it says
// until it ends the connection.
func talk(t testing.TB, c net.Conn, data []byte) {
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(io.Discard, c) // how it ends is not the question
	}()
	_, _ = c.Write(data) // the server may have ended it
	if u, ok := c.(*net.UnixConn); ok {
		_ = u.CloseWrite()
	}
	select {
	case <-read:
	case <-time.After(time.Minute):
		t.Error("the connection does not end")
	}
	c.Close()
}

const (
	requestSize = 28      // bytes of a request's header
	deviceSize  = 1 << 20 // bytes of each export
)

// mayTake returns what the server, and the client beside it, may take for some bytes of the client's: what as many answers have as there
// may be requests in them, whatever these say.
func mayTake(data []byte) heap.Cost {
	answers := int64(len(data)/requestSize+1) * (deviceSize + 64<<10)
	return heap.Cost{Memory: 1<<20 + 2*answers, CPU: 5*time.Second + 2*time.Duration(answers), Written: int64(len(data)) + answers}
}

// FuzzHandshake: whatever a client says first, nothing panics and the connection ends.
func FuzzHandshake(f *testing.F) {
	socket := serve(f, nbd.Options{},
		nbd.Export{Device: suite.RAM(f, deviceSize)}, nbd.Export{Name: "other", Device: suite.RAM(f, deviceSize)})
	option := func(id uint32, data string) []byte {
		p := binary.BigEndian.AppendUint64([]byte{0, 0, 0, 3}, optMagic)
		p = binary.BigEndian.AppendUint32(p, id)
		return append(binary.BigEndian.AppendUint32(p, uint32(len(data))), data...)
	}
	for _, id := range []uint32{1, 2, 3, 5, 6, 7, 8, 9, 10, 11} {
		f.Add(option(id, ""))
		f.Add(option(id, "\x00\x00\x00\x00\x00\x00"))
		f.Add(option(id, "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		mayTake(data).Allocates(t, func() int64 { talk(t, c, data); return 0 })
	})
}

// FuzzRequests: whatever a client says once it has an export, nothing panics and the connection ends.
func FuzzRequests(f *testing.F) {
	sockets := []string{
		serve(f, nbd.Options{}, nbd.Export{Device: suite.RAM(f, deviceSize)}),
		serve(f, nbd.Options{}, nbd.Export{Device: plain{suite.RAM(f, deviceSize)}}),
		serve(f, nbd.Options{}, nbd.Export{Device: blockdev.ReadOnly(suite.RAM(f, deviceSize))}),
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		var p []byte
		for range 5 {
			p = append(p, mutant(rnd, 0)...)
		}
		f.Add(p, uint8(rnd.IntN(6)))
	}
	f.Fuzz(func(t *testing.T, data []byte, which uint8) {
		c := start(t, sockets[which%3], which&4 != 0)
		mayTake(data).Allocates(t, func() int64 { talk(t, c.Conn, data); return 0 })
	})
}

// mutant returns a request, with a payload if it is a write, of which so many of 100 have a part that is wrong.
func mutant(rnd *rand.Rand, wrong int) []byte {
	cmds := []uint16{0, 1, 3, 4, 5, 6, 7}
	cmd, n, off := cmds[rnd.IntN(len(cmds))], uint32(rnd.IntN(8)*512), rnd.Uint64N(2048)*512
	flags := uint16(0)
	if rnd.IntN(100) < wrong {
		switch rnd.IntN(6) {
		case 0:
			cmd = uint16(rnd.Uint32())
		case 1:
			flags = uint16(rnd.Uint32())
		case 2:
			off = rnd.Uint64()
		case 3:
			if cmd != 1 { // or the payload would take all day
				n = rnd.Uint32()
			}
		case 4:
			off = 1<<20 - uint64(rnd.IntN(4096))
		case 5:
			flags = 1 << rnd.IntN(16)
		}
	}
	p := binary.BigEndian.AppendUint32(nil, requestMagic)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, cmd)
	p = binary.BigEndian.AppendUint64(p, rnd.Uint64())
	p = binary.BigEndian.AppendUint64(p, off)
	p = binary.BigEndian.AppendUint32(p, n)
	if cmd == 1 {
		p = append(p, make([]byte, n)...)
	}
	if rnd.IntN(1000) < wrong/10 { // seldom: it ends the connection
		p[rnd.IntN(len(p))] ^= byte(1 + rnd.IntN(255))
	}
	return p
}

// TestMutants: many wrong requests leave no goroutine, no descriptor and no memory behind.
func TestMutants(t *testing.T) {
	count := 1_000_000
	if testing.Short() {
		count = 50_000
	}
	sockets := []string{
		serve(t, nbd.Options{}, nbd.Export{Device: suite.RAM(t, 1<<20)}),
		serve(t, nbd.Options{}, nbd.Export{Device: plain{suite.RAM(t, 1<<20)}}),
	}
	rnd := rand.New(rand.NewPCG(5, 7))
	round := func(requests int) {
		for sent := 0; sent < requests; {
			c := start(t, sockets[rnd.IntN(2)], rnd.IntN(2) == 0)
			var p []byte
			for range 1 + rnd.IntN(500) {
				p = append(p, mutant(rnd, 30)...)
				sent++
			}
			talk(t, c.Conn, p)
		}
	}
	round(5000) // pools, workers and the like are there now
	goroutines, files, heap := usage(t)
	round(count)
	for wait := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		g, f, h := usage(t)
		if g <= goroutines+2 && f <= files+2 && h <= heap+32<<20 {
			return
		}
		if time.Now().After(wait) {
			t.Fatalf("goroutines %d, before %d; descriptors %d, %d; heap %d KiB, %d", g, goroutines, f, files, h>>10, heap>>10)
		}
	}
}

func usage(t *testing.T) (goroutines, files int, heap uint64) {
	t.Helper()
	runtime.GC()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), len(entries), m.HeapInuse
}
