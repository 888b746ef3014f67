package link_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/tools/link"
)

// serve answers each byte with one, then n bytes.
func serve(t *testing.T, n int) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				one := make([]byte, 1)
				for {
					if _, err := io.ReadFull(c, one); err != nil {
						return
					}
					if _, err := c.Write(make([]byte, n)); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

func ask(t *testing.T, c net.Conn, n int) {
	t.Helper()
	if _, err := c.Write([]byte{1}); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
		t.Error(err)
	}
}

func between(t *testing.T, what string, got, low, high float64) {
	t.Helper()
	t.Logf("%s: %.3f", what, got)
	if got < low || got > high {
		t.Errorf("%s: got %.3f, want %.3f to %.3f", what, got, low, high)
	}
}

func TestMeasuredRoundTrip(t *testing.T) {
	const rtt = 20 * time.Millisecond
	k, err := link.New(serve(t, 1), link.Options{RTT: rtt, Rate: 125_000_000})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	// The best of several: a busy machine only makes it longer.
	first, second := time.Hour, time.Hour
	for range 8 {
		began := time.Now() // before the dial: the link's handshake begins when it accepts, which may be before the dial returns
		c, err := net.Dial("tcp", k.Addr())
		if err != nil {
			t.Fatal(err)
		}
		ask(t, c, 1)
		first = min(first, time.Since(began))
		began = time.Now()
		ask(t, c, 1)
		second = min(second, time.Since(began))
		c.Close()
	}
	between(t, "first answer, handshake included, in round trips", float64(first)/float64(rtt), 2, 2.6)
	between(t, "second answer, in round trips", float64(second)/float64(rtt), 1, 1.5)
}

// TestMeasuredThroughput shows that the rate is the same for one connection and for sixteen together.
func TestMeasuredThroughput(t *testing.T) {
	const rate = 25_000_000 // slow enough that the machine is not the limit
	for _, conns := range []int{1, 16} {
		best := 0.0
		for range 4 { // the best of several: a busy machine only makes it less
			best = max(best, throughput(t, conns, rate))
		}
		between(t, fmt.Sprintf("throughput ÷ rate, %d connections", conns), best/rate, 0.85, 1.03)
	}
}

// throughput moves 5 MB over some connections and returns bytes a second.
func throughput(t *testing.T, conns int, rate int64) float64 {
	t.Helper()
	const rtt = 20 * time.Millisecond
	n := 5_000_000 / conns
	k, err := link.New(serve(t, n), link.Options{RTT: rtt, Rate: rate})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	began := time.Now()
	var all sync.WaitGroup
	for range conns {
		all.Go(func() {
			c, err := net.Dial("tcp", k.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			ask(t, c, n)
		})
	}
	all.Wait()
	took := time.Since(began)
	if _, received := k.Stats(); received != int64(n*conns) {
		t.Errorf("counted %d bytes, want %d", received, n*conns)
	}
	return float64(n*conns) / (took - 2*rtt).Seconds() // the handshake and the request
}

// TestSilence: what was connected before hears nothing more, without an error; what connects after that works.
func TestSilence(t *testing.T) {
	t.Parallel()
	k, err := link.New(serve(t, 1), link.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", k.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	old := dial()
	ask(t, old, 1)
	k.Silence()
	if _, err := old.Write([]byte{1}); err != nil {
		t.Error(err)
	}
	ask(t, dial(), 1) // which takes as long as an answer would
	if err := old.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := old.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes came, %v", n, err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}
