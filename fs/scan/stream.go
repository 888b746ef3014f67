package scan

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/remora-storage/remora/cache/inflate"
)

const (
	pieceSize  = 256 << 10 // packed bytes that are handed on at once
	pieceCount = 4
	chunkSize  = 256 << 10 // plain bytes, likewise
	chunkCount = 6
)

// pieces is the packed side of a scan: a reader that reads ahead and digests what it reads.
type pieces struct {
	ctx  context.Context // of the scan, which is one operation
	r    io.Reader
	sum  hash.Hash
	size int64

	full, free chan piece
	failed     error // of read, once full is closed
}

// A piece is packed bytes, with room before them.
type piece struct {
	buf  []byte // inflate.Headroom, then the bytes
	last bool
}

func newPieces(ctx context.Context, r io.Reader) *pieces {
	p := &pieces{ctx: ctx, r: r, sum: sha256.New(), full: make(chan piece, pieceCount), free: make(chan piece, pieceCount)}
	for range pieceCount {
		p.free <- piece{buf: make([]byte, inflate.Headroom+pieceSize)}
	}
	return p
}

// read reads until the end.
func (p *pieces) read() (err error) {
	defer func() {
		p.failed = err
		close(p.full)
	}()
	for {
		var one piece
		select {
		case one = <-p.free:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
		buf := one.buf[:inflate.Headroom+pieceSize]
		n, err := io.ReadFull(p.r, buf[inflate.Headroom:])
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return err
		}
		p.sum.Write(buf[inflate.Headroom : inflate.Headroom+n])
		p.size += int64(n)
		p.full <- piece{buf[:inflate.Headroom+n], last}
		if last {
			return nil
		}
	}
}

// next returns the next piece, which goes back by put. After the last one it fails.
func (p *pieces) next() (piece, error) {
	select {
	case one, ok := <-p.full:
		if !ok && p.failed != nil {
			return one, p.failed
		}
		if !ok {
			return one, io.ErrUnexpectedEOF
		}
		return one, nil
	case <-p.ctx.Done():
		return piece{}, context.Cause(p.ctx)
	}
}

func (p *pieces) put(one piece) { p.free <- one }

// drain reads what the decoder has no use for.
func (p *pieces) drain() error {
	for one := range p.full {
		p.put(one)
	}
	return context.Cause(p.ctx)
}

// piecesReader reads pieces as a stream.
type piecesReader struct {
	p    *pieces
	one  piece
	rest []byte
	over bool
}

func (r *piecesReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.over {
			return 0, io.EOF
		}
		if r.one.buf != nil {
			r.p.put(r.one)
			r.one.buf = nil
		}
		one, err := r.p.next()
		if err != nil {
			return 0, err
		}
		r.one, r.rest, r.over = one, one.buf[inflate.Headroom:], one.last
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// chunks is the plain side of a scan: what the decoder made, for two who read it.
type chunks struct {
	ctx   context.Context // of the scan, which is one operation
	limit int64
	size  int64 // plain bytes so far

	free          chan []byte
	toTree, toSum chan *chunk
	all           []cut // where decoding can begin, the start first
}

// A cut is a place at which decoding can begin.
type cut struct{ plain, packed int64 }

// A chunk is plain bytes, and the cuts in it.
type chunk struct {
	buf   []byte // all of the buffer
	plain []byte
	cuts  []int64 // plain offsets in the layer, each at the chunk's start or behind
	users atomic.Int32
}

func newChunks(ctx context.Context, limit int64) *chunks {
	c := &chunks{
		ctx: ctx, limit: limit, free: make(chan []byte, chunkCount),
		toTree: make(chan *chunk, chunkCount), toSum: make(chan *chunk, chunkCount), all: []cut{{}},
	}
	for range chunkCount {
		c.free <- make([]byte, inflate.BufferSize(chunkSize))
	}
	return c
}

// take returns a buffer to decode into.
func (c *chunks) take() ([]byte, error) {
	select {
	case b := <-c.free:
		return b, nil
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	}
}

// send hands on plain bytes in a buffer of take's, which comes back by itself.
func (c *chunks) send(buf, plain []byte, cuts []cut) error {
	one := &chunk{buf: buf, plain: plain}
	one.users.Store(2)
	for _, k := range cuts {
		one.cuts = append(one.cuts, k.plain)
	}
	c.all = append(c.all, cuts...)
	if c.size += int64(len(plain)); c.size > c.limit {
		return fmt.Errorf("%w (%d bytes)", ErrBomb, c.limit)
	}
	for _, to := range []chan *chunk{c.toTree, c.toSum} {
		select {
		case to <- one:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
	return nil
}

func (c *chunks) end() {
	close(c.toTree)
	close(c.toSum)
}

func (c *chunks) done(one *chunk) {
	if one.users.Add(-1) == 0 {
		c.free <- one.buf
	}
}

// hash digests all of it.
func (c *chunks) hash(h hash.Hash) error {
	for {
		select {
		case one, ok := <-c.toSum:
			if !ok {
				return nil
			}
			h.Write(one.plain)
			c.done(one)
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
}

// longest returns the plain bytes of the largest unit.
func (c *chunks) longest() (n int64) {
	for i, k := range c.all {
		end := c.size
		if i+1 < len(c.all) {
			end = c.all[i+1].plain
		}
		n = max(n, end-k.plain)
	}
	return n
}

// points returns the places at which decoding can begin: those of a gzip stream, or else the cuts.
func (c *chunks) points(gzip []inflate.Point) []inflate.Point {
	if gzip != nil {
		return gzip
	}
	all := make([]inflate.Point, len(c.all))
	for i, k := range c.all {
		all[i] = inflate.Point{Plain: k.plain, Off: k.packed}
	}
	return all
}
