package scan

import (
	"crypto/sha256"
	"math/rand/v2"
	"testing"
)

// TestExtentSum: whatever pieces extents come in, of zeros or not, their digests are right.
func TestExtentSum(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	s := newExtentSum()
	for range 2000 {
		var all []byte
		for range rnd.IntN(4) {
			p := make([]byte, rnd.IntN(3)*rnd.IntN(100_000))
			for i := 0; i < len(p) && rnd.IntN(3) == 0; i += 1 + rnd.IntN(len(p)) {
				p[i] = byte(rnd.Uint32())
			}
			all = append(all, p...)
			s.write(p)
		}
		if got, want := s.end(), sha256.Sum256(all); got != want {
			t.Fatalf("an extent of %d bytes: %x, want %x", len(all), got, want)
		}
	}
	if len(s.known) > knownZeros {
		t.Errorf("%d digests of zeros are remembered", len(s.known))
	}
}

// BenchmarkExtentOfZeros compares an extent of zeros with SHA-256 of as many bytes.
func BenchmarkExtentOfZeros(b *testing.B) {
	p := make([]byte, 4<<20)
	for name, sum := range map[string]func(){
		"sha256": func() { sha256.Sum256(p) },
		"extent": func() func() { s := newExtentSum(); return func() { s.write(p); s.end() } }(),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			for range b.N {
				sum()
			}
		})
	}
}
