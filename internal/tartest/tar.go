package tartest

import (
	"archive/tar"
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
)

// Member is a member of an archive. Its size and time are set when it is written.
type Member struct {
	tar.Header
	Body []byte
}

// Archive returns a tar of members. Directories that are not among them are implicit.
func Archive(t testing.TB, members ...Member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		m.Size, m.ModTime = int64(len(m.Body)), time.Unix(1700000000, 0)
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.Body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Noise returns n bytes that do not compress, the same for each seed.
func Noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}
