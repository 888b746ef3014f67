package registry

import (
	"context"
	"sync"
	"time"
)

// A host that answers a request for a range with the whole blob has begun to send what the caller asks for next: all of it, since no
// range is to be had. So that answer is set aside for Whole.

// spareHolds is how long an answer is set aside. It is a request under way, of which a host gets so many.
const spareHolds = 5 * time.Second

// A Spare is at most one whole answer to a request for a range, for who asks next for the whole blob.
type Spare struct {
	mu     sync.Mutex // guards the fields below
	of     *Blob
	body   *stallReader // nil for none
	packed bool         // there was an encoding around it
	drop   *time.Timer
	closed bool
}

type spareKey struct{}

// Sparing returns a context in which a whole answer to a request for a range is set aside, and the next Whole of the same blob reads
// it. Close ends what nobody has read.
func Sparing(ctx context.Context) (context.Context, *Spare) {
	s := new(Spare)
	return context.WithValue(ctx, spareKey{}, s), s
}

func spareOf(ctx context.Context) *Spare {
	s, _ := ctx.Value(spareKey{}).(*Spare)
	return s
}

// offer sets an answer aside, or closes it.
func (s *Spare) offer(of *Blob, body *stallReader, packed bool) {
	s.mu.Lock()
	keep := s.body == nil && !s.closed
	if keep {
		s.of, s.body, s.packed = of, body, packed
		s.drop = time.AfterFunc(spareHolds, s.end)
	}
	s.mu.Unlock()
	if !keep {
		body.Close() // nothing of it was read
	}
}

// take returns the answer that was set aside for a blob, from its beginning, or nil.
func (s *Spare) take(b *Blob) (body *stallReader, packed bool) {
	if s == nil {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.body == nil || s.of.digest != b.digest || s.of.repo != b.repo || s.of.size != b.size {
		return nil, false
	}
	s.drop.Stop()
	body, s.body = s.body, nil
	return body, s.packed
}

// end closes what was set aside.
func (s *Spare) end() {
	s.mu.Lock()
	body := s.body
	s.body = nil
	s.mu.Unlock()
	if body != nil {
		body.Close() // nothing of it was read
	}
}

// Close ends the answer that nobody has read, and has those that come later closed.
func (s *Spare) Close() {
	s.mu.Lock()
	s.closed = true
	if s.drop != nil {
		s.drop.Stop()
	}
	s.mu.Unlock()
	s.end()
}

// detached returns a context for a request whose answer may be set aside: it ends with ctx until leave is called, which reports false if
// it has ended.
func (s *Spare) detached(ctx context.Context) (request context.Context, cancel context.CancelCauseFunc, leave func() bool) {
	if s == nil {
		request, cancel = context.WithCancelCause(ctx)
		return request, cancel, nil
	}
	request, end := context.WithCancelCause(context.WithoutCancel(ctx))
	leave = context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	return request, func(cause error) { leave(); end(cause) }, leave
}
