package nbdload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A Stream is requests of one kind that follow each other on one connection.
type Stream struct {
	Size  int // bytes a request
	Depth int // requests that wait for their answers at once
	Write bool
	Times bool // keep how long each took
}

// A Result is what a stream came to.
type Result struct {
	Requests  int64
	Bytes     int64
	Latencies []time.Duration
}

// Percentile returns the latency that p (0 to 1) of all requests do not exceed.
func (r *Result) Percentile(p float64) time.Duration {
	if len(r.Latencies) == 0 {
		return 0
	}
	l := slices.Sorted(slices.Values(r.Latencies))
	return l[min(int(p*float64(len(l))), len(l)-1)]
}

// slot is a request that waits.
type slot struct {
	stream int
	began  time.Time
}

// Run has streams run on a connection until the time is over, at random offsets that are multiples of their
// sizes, and returns what each came to. The first request that fails ends it.
func (c *Conn) Run(streams []Stream, during time.Duration, seed uint64) ([]Result, error) {
	runtime.LockOSThread() // system calls that wait are this thread's own
	defer runtime.UnlockOSThread()
	r := &running{c: c, streams: streams, results: make([]Result, len(streams)), rnd: rand.New(rand.NewPCG(seed, 9)), in: make([]byte, 1<<20)}
	largest := 0
	for i, s := range streams {
		largest = max(largest, s.Size)
		for range s.Depth {
			r.slots = append(r.slots, slot{stream: i})
		}
	}
	r.payload = make([]byte, largest)
	for i := range r.payload {
		r.payload[i] = byte(i*7 + 1)
	}
	end := time.Now().Add(during)
	for i := range r.slots {
		r.send(i)
	}
	for {
		if err := r.flush(); err != nil {
			return r.results, err
		}
		if r.waiting == 0 {
			return r.results, nil
		}
		over := !time.Now().Before(end)
		if err := r.receive(over); err != nil {
			return r.results, err
		}
	}
}

type running struct {
	c       *Conn
	streams []Stream
	results []Result
	slots   []slot
	rnd     *rand.Rand
	waiting int

	out     []byte
	payload []byte

	in       []byte
	pos, end int
}

// send puts a slot's next request among what is sent next.
func (r *running) send(i int) {
	s := &r.streams[r.slots[i].stream]
	cmd := uint16(0)
	if s.Write {
		cmd = 1
	}
	off := r.rnd.Int64N(r.c.Size/int64(s.Size)) * int64(s.Size)
	r.out = binary.BigEndian.AppendUint32(r.out, magic)
	r.out = binary.BigEndian.AppendUint16(r.out, 0)
	r.out = binary.BigEndian.AppendUint16(r.out, cmd)
	r.out = binary.BigEndian.AppendUint64(r.out, uint64(i))
	r.out = binary.BigEndian.AppendUint64(r.out, uint64(off))
	r.out = binary.BigEndian.AppendUint32(r.out, uint32(s.Size))
	if s.Times {
		r.slots[i].began = time.Now()
	}
	r.waiting++
	if !s.Write {
		return
	}
	if s.Size <= 16<<10 {
		r.out = append(r.out, r.payload[:s.Size]...)
		return
	}
	if err := r.flushWith(r.payload[:s.Size]); err != nil {
		r.out = nil // the next flush finds out
	}
}

func (r *running) flush() error { return r.flushWith(nil) }

func (r *running) flushWith(payload []byte) error {
	iov := [][]byte{r.out, payload}
	for len(iov[0])+len(iov[1]) > 0 {
		n, err := unix.Writev(r.c.fd, iov)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for i := range iov {
			k := min(n, len(iov[i]))
			iov[i], n = iov[i][k:], n-k
		}
	}
	r.out = r.out[:0]
	return nil
}

// need returns the next n bytes of the answers.
func (r *running) need(n int) ([]byte, error) {
	for r.end-r.pos < n {
		if r.pos > 0 {
			copy(r.in, r.in[r.pos:r.end])
			r.pos, r.end = 0, r.end-r.pos
		}
		k, err := r.c.Read(r.in[r.end:])
		if err != nil {
			return nil, err
		}
		r.end += k
	}
	p := r.in[r.pos : r.pos+n]
	r.pos += n
	return p, nil
}

func (r *running) skip(n int) error {
	for n > 0 {
		if r.pos == r.end {
			r.pos, r.end = 0, 0
			if _, err := r.need(1); err != nil {
				return err
			}
			r.pos = 0
		}
		k := min(n, r.end-r.pos)
		r.pos, n = r.pos+k, n-k
	}
	return nil
}

// receive takes the answers that are there, one at least, and sends a request for each.
func (r *running) receive(over bool) error {
	for first := true; first || r.end-r.pos >= 16; first = false {
		h, err := r.need(16)
		if err != nil {
			return err
		}
		i := int(binary.BigEndian.Uint64(h[8:]))
		if i >= len(r.slots) {
			return fmt.Errorf("answer to request %d", i)
		}
		done := true
		s := &r.streams[r.slots[i].stream]
		switch binary.BigEndian.Uint32(h) {
		case simple:
			if e := binary.BigEndian.Uint32(h[4:]); e != 0 {
				return fmt.Errorf("request failed: %w", unix.Errno(e))
			}
			if !s.Write {
				err = r.skip(s.Size)
			}
		case structured:
			done = binary.BigEndian.Uint16(h[4:])&1 != 0
			if binary.BigEndian.Uint16(h[6:])&(1<<15) != 0 {
				return errors.New("request failed")
			}
			var p []byte
			if p, err = r.need(4); err == nil {
				err = r.skip(int(binary.BigEndian.Uint32(p)))
			}
		default:
			return fmt.Errorf("answer %#x", binary.BigEndian.Uint32(h))
		}
		if err != nil {
			return err
		}
		if !done {
			continue
		}
		r.waiting--
		res := &r.results[r.slots[i].stream]
		res.Requests++
		res.Bytes += int64(s.Size)
		if s.Times {
			res.Latencies = append(res.Latencies, time.Since(r.slots[i].began))
		}
		if !over {
			r.send(i)
		}
	}
	return nil
}
