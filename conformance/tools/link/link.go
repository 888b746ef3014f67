package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a Link. A zero RTT or Rate is none.
type Options struct {
	RTT  time.Duration // both ways together
	Rate int64         // bytes a second, each way
}

// A Link forwards connections to one address.
type Link struct {
	to   string
	opts Options
	l    net.Listener

	up, down bucket
	conns    atomic.Int64
	received atomic.Int64

	started sync.WaitGroup
	stop    context.CancelFunc

	mu     sync.Mutex // guards silent
	silent chan struct{}
}

// New listens on a free port of loopback and forwards to the address. Close must be called.
func New(to string, opts Options) (*Link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	k := &Link{to: to, opts: opts, l: l, stop: stop, silent: make(chan struct{}), up: bucket{rate: opts.Rate}, down: bucket{rate: opts.Rate}}
	k.started.Go(func() { k.accept(ctx) })
	return k, nil
}

// Addr is where to connect to.
func (k *Link) Addr() string { return k.l.Addr().String() }

// Stats returns how many connections were made and how many bytes came back since the start.
func (k *Link) Stats() (connections, received int64) { return k.conns.Load(), k.received.Load() }

// SetRate changes the rate, in bytes a second each way. What is in the queue before the link leaves it as it would have.
func (k *Link) SetRate(rate int64) {
	k.up.set(rate)
	k.down.set(rate)
}

// Silence has nothing more come through the connections that there are, and nobody is told: as where a machine between has forgotten
// them. New ones work.
func (k *Link) Silence() {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.silent)
	k.silent = make(chan struct{})
}

// Close ends all connections.
func (k *Link) Close() error {
	k.stop()
	err := k.l.Close()
	k.started.Wait()
	return err
}

func (k *Link) accept(ctx context.Context) {
	for {
		c, err := k.l.Accept()
		if err != nil {
			return // closed
		}
		k.conns.Add(1)
		k.mu.Lock()
		silent := k.silent
		k.mu.Unlock()
		k.started.Go(func() { k.forward(ctx, c, silent) })
	}
}

func (k *Link) forward(ctx context.Context, c net.Conn, silent <-chan struct{}) {
	defer c.Close()
	s, err := net.Dial("tcp", k.to)
	if err != nil {
		return
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { c.Close(); s.Close() })
	defer stop()
	opened := time.Now().Add(k.opts.RTT) // SYN there, SYN-ACK back
	var both sync.WaitGroup
	passes := func() bool {
		select {
		case <-silent:
			<-ctx.Done()
			return false
		default:
			return true
		}
	}
	both.Go(func() { k.pump(s, c, &k.up, opened, passes, nil) })
	both.Go(func() { k.pump(c, s, &k.down, opened, passes, &k.received) })
	both.Wait()
}

// packet is bytes on their way.
type packet struct {
	data []byte
	at   time.Time // when they arrive
}

const (
	packetSize = 16 << 10
	// window bounds what is on the way in a connection; it must hold a link's bandwidth times
	// its delay.
	window = 1024 // packets
	// queueTime is how long the last byte in the full queue before the link waits.
	queueTime = time.Second
)

// pump carries bytes one way. passes waits for the end of the link, and then says no, if nothing comes through any longer.
func (k *Link) pump(dst, src net.Conn, b *bucket, notBefore time.Time, passes func() bool, count *atomic.Int64) {
	queue := make(chan packet, window)
	var writer sync.WaitGroup
	writer.Go(func() {
		for p := range queue {
			time.Sleep(time.Until(p.at))
			if count != nil { // before: who has the bytes must find them counted
				count.Add(int64(len(p.data)))
			}
			if !passes() {
				continue
			}
			if _, err := dst.Write(p.data); err != nil {
				src.Close() // ends the reader below
				for range queue {
				}
				return
			}
		}
		if t, ok := dst.(*net.TCPConn); ok {
			_ = t.CloseWrite() // the peer may have gone
		}
	})
	for {
		buf := make([]byte, packetSize)
		n, err := src.Read(buf)
		if !passes() {
			break
		}
		if n > 0 {
			sent := time.Now()
			if sent.Before(notBefore) {
				sent = notBefore
			}
			left := b.take(sent, n)
			queue <- packet{buf[:n], left.Add(k.opts.RTT / 2)}
			time.Sleep(time.Until(left) - queueTime)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				dst.Close()
			}
			break
		}
	}
	close(queue)
	writer.Wait()
}

// bucket is the rate of one direction.
type bucket struct {
	mu   sync.Mutex // guards the fields below
	rate int64      // bytes a second; 0 for any
	next time.Time  // when the link is free
}

// take returns when n bytes, given to the link at a time, have left it.
func (b *bucket) take(at time.Time, n int) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate == 0 {
		return at
	}
	if b.next.Before(at) {
		b.next = at
	}
	b.next = b.next.Add(time.Duration(int64(n) * int64(time.Second) / b.rate))
	return b.next
}

func (b *bucket) set(rate int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rate = rate
}

// String describes the link as it was made.
func (k *Link) String() string {
	return fmt.Sprintf("%s round trip, %.0f Mbit/s", k.opts.RTT, float64(k.opts.Rate)*8/1e6)
}
