package fetch

import (
	"context"
	"io"
	"runtime"

	"github.com/remora-storage/remora/internal/fair"
)

// newDecoding returns the places of those that decode, for each processor four. One user alone has twice as many as there are
// processors, which keeps them busy while some store; the rest is there for others when they come.
func newDecoding() *fair.Pool[fair.User] {
	n := runtime.GOMAXPROCS(0)
	return fair.NewTieredPool(4*n, 3*n, 2*n)
}

// A place is one of those, for a unit in memory. It is given back while something is waited for.
type place struct {
	enter func() (leave func(), err error)
	leave func() // nil while it is given back
}

// placeFor returns a place that is still to be taken. Readers' units go before others.
func (p *Pool) placeFor(ctx context.Context, who fair.User, prio priority) *place {
	if prio == demand {
		return &place{enter: func() (func(), error) { return p.decoding.AcquireFirst(ctx, who) }}
	}
	return &place{enter: func() (func(), error) { return p.decoding.Acquire(ctx, who) }}
}

// take waits for the place.
func (p *place) take() (err error) {
	p.leave, err = p.enter()
	return err
}

// give gives the place back if it is taken.
func (p *place) give() {
	if p.leave != nil {
		p.leave()
		p.leave = nil
	}
}

// Decoding waits for a place among those that decode, for what is here and decoded again. leave must be called.
func (f *Fetcher) Decoding(ctx context.Context) (leave func(), err error) {
	return f.pool.decoding.Acquire(ctx, f.user(ctx))
}

// stepBytes is how much of a unit that is decoded as it comes is decoded in one go.
const stepBytes = 1 << 20

// steps reads a unit's packed bytes for its decoder, many at a time, and gives the decoder's place back meanwhile: the source may take
// its time, and so may who else gets these bytes.
type steps struct {
	place     *place
	in        io.Reader
	buf, left []byte
	err       error
}

// steps returns a reader of a unit of so many packed bytes, for its decoder in this place.
func (p *place) steps(in io.Reader, size int64) *steps {
	return &steps{place: p, in: in, buf: make([]byte, max(min(size, stepBytes), 1))}
}

func (s *steps) Read(p []byte) (int, error) {
	if len(s.left) == 0 && s.err == nil {
		s.place.give()
		n := 0
		for n < len(s.buf) && s.err == nil {
			var k int
			k, s.err = s.in.Read(s.buf[n:])
			n += k
		}
		if err := s.place.take(); err != nil {
			s.err = err
			return 0, err
		}
		s.left = s.buf[:n]
	}
	if len(s.left) == 0 {
		return 0, s.err
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}
