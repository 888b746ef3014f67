package wire

import (
	"encoding/binary"
	"hash"
	"hash/crc32"
	"math"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum returns the CRC32C of its parts, as if they were one.
func Sum(parts ...[]byte) (sum uint32) {
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
	}
	return sum
}

// NewSum returns a hash that is the Sum of what is written to it.
func NewSum() hash.Hash32 { return crc32.New(castagnoli) }

// A Reader takes numbers and bytes from the beginning of what is left. Where something is missing it gives zeros, and
// nothing is left: its user looks at Bad once, at the end.
type Reader struct {
	p   []byte
	bad bool
}

// Read returns a Reader of p. What the Reader returns of it is p's memory, but for texts.
func Read(p []byte) Reader { return Reader{p: p} }

// Bad reports whether something was missing, or too large.
func (r *Reader) Bad() bool { return r.bad }

// Rest returns what is left.
func (r *Reader) Rest() []byte { return r.p }

// Len returns how many bytes are left.
func (r *Reader) Len() int { return len(r.p) }

func (r *Reader) fail() { r.p, r.bad = nil, true }

// Next takes a number in LEB128.
func (r *Reader) Next() uint64 {
	v, n := binary.Uvarint(r.p)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.p = r.p[n:]
	return v
}

// Signed takes a number in LEB128 whose lowest bit says that it is below zero: 0, -1, 1, -2, and so on.
func (r *Reader) Signed() int64 {
	v := r.Next()
	return int64(v>>1) ^ -int64(v&1)
}

// Add takes a number in LEB128 and returns its sum with v. A sum beyond an int64 is bad.
func (r *Reader) Add(v int64) int64 {
	d := r.Next()
	if d > uint64(math.MaxInt64-v) {
		r.bad = true
		return v
	}
	return v + int64(d)
}

// Uint32 takes four bytes, the lowest first.
func (r *Reader) Uint32() uint32 {
	p := r.Bytes(4)
	if p == nil {
		return 0
	}
	return binary.LittleEndian.Uint32(p)
}

// Bytes takes n bytes, or returns nil.
func (r *Reader) Bytes(n uint64) []byte {
	if n > uint64(len(r.p)) {
		r.fail()
		return nil
	}
	p := r.p[:n:n]
	r.p = r.p[n:]
	return p
}

// Text takes a text whose length in bytes comes before it, in LEB128.
func (r *Reader) Text() string { return string(r.Bytes(r.Next())) }
