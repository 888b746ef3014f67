package scan

import (
	"bytes"
	"crypto/sha256"
	"hash"
)

// An extentSum computes SHA-256 of extents. The zeros that one begins with are hashed once something else follows: what is nothing but
// zeros costs a layer next to nothing, and its digest is known from the last one as long.
type extentSum struct {
	hash  hash.Hash
	zeros int64 // that the extent begins with and that are not hashed yet
	begun bool  // something was hashed
	known map[int64][sha256.Size]byte
}

// knownZeros is of how many lengths the digests are remembered. Extents of large files mostly have the same ones.
const knownZeros = 64

func newExtentSum() *extentSum {
	return &extentSum{hash: sha256.New(), known: map[int64][sha256.Size]byte{}}
}

// write adds bytes to the extent.
func (s *extentSum) write(p []byte) {
	if !s.begun && len(p) > 0 && p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) {
		s.zeros += int64(len(p))
		return
	}
	s.hashZeros()
	s.begun = true
	s.hash.Write(p)
}

var zeroPage [64 << 10]byte

func (s *extentSum) hashZeros() {
	for s.zeros > 0 {
		n := min(s.zeros, int64(len(zeroPage)))
		s.hash.Write(zeroPage[:n])
		s.zeros -= n
	}
}

// end returns the extent's digest and begins the next one.
func (s *extentSum) end() (d [sha256.Size]byte) {
	n := s.zeros
	if known, ok := s.known[n]; ok && !s.begun {
		s.zeros = 0
		return known
	}
	s.hashZeros()
	s.hash.Sum(d[:0])
	s.hash.Reset()
	if !s.begun && len(s.known) < knownZeros {
		s.known[n] = d
	}
	s.begun = false
	return d
}
