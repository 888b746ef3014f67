package nbd

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// A request on its way from the socket to its answer on the socket. It is used again and again.
type request struct {
	c      *conn
	cmd    uint16
	flags  uint16
	handle uint64
	off    int64
	n      int // bytes, at most maxRequest where the request has any in memory

	buf  *buffer // of a write's payload, or of what an answer carries; nil if neither is ours
	owed *budget // what buf was taken from

	// The answer: head and, behind it, data.
	headRoom [chunkLen + 8]byte
	head     []byte
	data     []byte
	sent     int  // bytes of data that are on their way, if it goes in pieces
	pieces   bool // data may be sent in pieces, each a chunk of a structured reply

	next *request // in a queue
}

var requests = sync.Pool{New: func() any { return new(request) }}

func (c *conn) newRequest(cmd, flags uint16, handle uint64, off int64, n int) *request {
	r := requests.Get().(*request)
	r.c, r.cmd, r.flags, r.handle, r.off, r.n = c, cmd, flags, handle, off, n
	return r
}

// release ends a request.
func (r *request) release() {
	r.dropBuffer()
	r.c, r.head, r.data, r.sent, r.pieces, r.next = nil, nil, nil, 0, false, nil
	requests.Put(r)
}

// lend gives the request a buffer of n bytes that b has let it have.
func (r *request) lend(b *budget, n int) {
	r.buf, r.owed = takeBuffer(n), b
}

func (r *request) dropBuffer() {
	if r.buf == nil {
		return
	}
	n := len(r.buf.p)
	r.buf.give()
	r.owed.give(n)
	r.buf, r.owed = nil, nil
}

// structuredAnswer reports whether the request's answer has to be a structured one.
func (r *request) structuredAnswer() bool {
	return r.c.structured && (r.cmd == protocol.TRANSMISSION_TYPE_REQUEST_READ || r.cmd == cmdStatus)
}

// succeed makes the answer of a request that was carried out: data, of which a read's may go in pieces.
func (r *request) succeed(data []byte) {
	r.data = data
	if !r.structuredAnswer() {
		r.simple(0)
		return
	}
	switch {
	case r.cmd == cmdStatus:
		r.chunk(chunkStatus, len(data))
	case len(data) == 0:
		r.chunk(chunkNone, 0)
	default:
		r.pieces = r.flags&cfDF == 0 && len(data) > smallAnswer
		r.chunk(chunkData, 8+len(data))
		r.head = binary.BigEndian.AppendUint64(r.head, uint64(r.off))
	}
}

// fail makes the answer of a request that was not carried out.
func (r *request) fail(code uint32, why string) {
	r.dropBuffer()
	r.data = nil
	if !r.structuredAnswer() {
		r.simple(code)
		return
	}
	why = why[:min(len(why), maxErrorText)]
	r.chunk(chunkError, 6+len(why))
	r.data = binary.BigEndian.AppendUint32(nil, code)
	r.data = binary.BigEndian.AppendUint16(r.data, uint16(len(why)))
	r.data = append(r.data, why...)
}

func (r *request) simple(code uint32) {
	p := r.headRoom[:replyLen]
	binary.BigEndian.PutUint32(p, protocol.TRANSMISSION_MAGIC_REPLY)
	binary.BigEndian.PutUint32(p[4:], code)
	binary.BigEndian.PutUint64(p[8:], r.handle)
	r.head = p
}

// chunk begins an answer of one chunk with n bytes behind the header.
func (r *request) chunk(kind uint16, n int) {
	r.head = chunkHeader(r.headRoom[:], kind, chunkDone, r.handle, n)
}

func chunkHeader(p []byte, kind, flags uint16, handle uint64, n int) []byte {
	binary.BigEndian.PutUint32(p, structuredMagic)
	binary.BigEndian.PutUint16(p[4:], flags)
	binary.BigEndian.PutUint16(p[6:], kind)
	binary.BigEndian.PutUint64(p[8:], handle)
	binary.BigEndian.PutUint32(p[16:], uint32(n))
	return p[:chunkLen]
}

// A buffer is memory of whole pages that begins on a page, as direct I/O wants it.
type buffer struct{ p []byte }

const (
	smallestClass = 12 // buffers have 1<<12 bytes and more
	largestClass  = 25 // maxRequest
)

var buffers [largestClass + 1]sync.Pool // of *buffer with a capacity of 1<<i

func takeBuffer(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), smallestClass)
	if b, ok := buffers[class].Get().(*buffer); ok {
		b.p = b.p[:n]
		return b
	}
	return &buffer{make([]byte, n, 1<<class)} // Go puts what is as large as a page on one
}

func (b *buffer) give() {
	b.p = b.p[:cap(b.p)]
	buffers[bits.Len(uint(cap(b.p)))-1].Put(b)
}
