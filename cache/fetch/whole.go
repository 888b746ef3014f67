package fetch

import (
	"context"
	"errors"
	"io"
	"sync"
)

const (
	wholePiece  = 1 << 20
	wholeAtOnce = 4 // requests for one blob
)

// Read returns a reader of a blob from off to its end. It makes several requests side by side, each for a
// piece, all of which count as prefetch: a reader's go before them. If alone, the others wait until the first one is
// answered: where nothing is known of the source, it may fail for all of them.
func (p *Pool) Read(ctx context.Context, src Source, off, size int64, try int, alone bool) io.ReadCloser {
	ctx, cancel := context.WithCancelCause(ctx)
	r := &wholeReader{ctx: ctx, left: size - off, cancel: cancel, queue: make(chan *wholePart, wholeAtOnce-1)}
	r.started.Go(func() {
		defer close(r.queue)
		for at := off; at < size; at += wholePiece {
			part := &wholePart{buf: make([]byte, min(wholePiece, size-at))}
			part.more = sync.NewCond(&part.mu)
			part.opened = make(chan struct{})
			select {
			case r.queue <- part:
			case <-ctx.Done():
				return
			}
			r.started.Go(func() { part.end(p.readPart(ctx, src, part, at, try)) })
			if alone && at == off {
				select {
				case <-part.opened:
				case <-ctx.Done():
					return
				}
			}
		}
	})
	return r
}

// Stream returns a reader of all that open reads, by one request. It counts as prefetch.
func (p *Pool) Stream(ctx context.Context, src Source, open func(context.Context) (io.ReadCloser, error)) io.ReadCloser {
	return &streamReader{ctx: ctx, p: p, t: p.scheds.enter(src, prefetch), open: open}
}

// streamReader asks when it is read first.
type streamReader struct {
	ctx  context.Context // of Stream: the reader is one operation
	p    *Pool
	t    *ticket
	open func(context.Context) (io.ReadCloser, error)
	r    io.ReadCloser
}

func (s *streamReader) Read(b []byte) (int, error) {
	if s.r == nil {
		if err := s.t.wait(s.ctx); err != nil {
			return 0, err
		}
		r, err := s.open(s.ctx)
		if err != nil {
			return 0, err
		}
		s.r = r
	}
	s.t.yield(s.ctx)
	n, err := s.r.Read(b)
	s.p.metrics.fetchBytes.Add(float64(n))
	return n, err
}

func (s *streamReader) Close() error {
	s.t.release()
	if s.r == nil {
		return nil
	}
	return s.r.Close()
}

// ReadBlob returns a reader of the image's whole blob.
func (f *Fetcher) ReadBlob(ctx context.Context) io.ReadCloser {
	src := f.source(ctx)
	return &wholeOr{ReadCloser: f.pool.Read(ctx, src, 0, f.t.BlobSize, 0, false), ctx: ctx, f: f, src: src}
}

// readPart fetches one piece.
func (p *Pool) readPart(ctx context.Context, src Source, part *wholePart, off int64, try int) error {
	t := p.scheds.enter(src, prefetch)
	defer t.release()
	if err := t.wait(ctx); err != nil {
		return err
	}
	r, err := src.Open(ctx, off, int64(len(part.buf)), try)
	if err != nil {
		return err
	}
	defer r.Close()
	close(part.opened)
	for n := 0; n < len(part.buf); {
		t.yield(ctx)
		k, err := r.Read(part.buf[n:])
		n += k
		p.metrics.fetchBytes.Add(float64(k))
		part.mu.Lock()
		part.got = n
		part.mu.Unlock()
		part.more.Signal()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && n < len(part.buf) {
			return err
		}
	}
	return nil
}

// wholeReader hands pieces out in order.
type wholeReader struct {
	ctx     context.Context // of Read: the reader is one operation
	left    int64           // bytes
	cancel  context.CancelCauseFunc
	queue   chan *wholePart
	part    *wholePart
	at      int
	started sync.WaitGroup
}

// A wholePart is a piece of a blob on its way.
type wholePart struct {
	buf    []byte
	opened chan struct{} // is closed when its request is answered, if it ever is
	mu     sync.Mutex    // guards the fields below
	more   *sync.Cond
	got    int
	over   bool
	err    error
}

func (p *wholePart) end(err error) {
	p.mu.Lock()
	p.over, p.err = true, err
	p.mu.Unlock()
	p.more.Signal()
}

func (r *wholeReader) Read(b []byte) (int, error) {
	for {
		if r.part == nil {
			part, ok := <-r.queue
			if !ok && r.left > 0 {
				return 0, context.Cause(r.ctx)
			}
			if !ok {
				return 0, io.EOF
			}
			r.part, r.at = part, 0
		}
		p := r.part
		p.mu.Lock()
		for p.got == r.at && !p.over {
			p.more.Wait()
		}
		got, over, err := p.got, p.over, p.err
		p.mu.Unlock()
		if got > r.at {
			n := copy(b, p.buf[r.at:got])
			r.at += n
			r.left -= int64(n)
			return n, nil
		}
		if over && err != nil {
			return 0, err
		}
		r.part = nil
	}
}

// Close ends the requests and waits for them.
func (r *wholeReader) Close() error {
	r.cancel(errors.New("reader was closed"))
	r.started.Wait()
	return nil
}
