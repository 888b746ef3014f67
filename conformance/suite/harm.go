package suite

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A Harm is what may become of a small file: by a power cut, a bad disk, or somebody who meant well.
type Harm struct {
	Name string
	Do   func(t testing.TB, path string) // the file is there
}

// harmedSize is that of a file that is far too large, in bytes. It is sparse.
const harmedSize = 64 << 30

// Harms returns all of them but the loss of the file. What one of them leaves is not the JSON of an object.
func Harms(seed uint64) []Harm {
	r := rand.New(rand.NewPCG(seed, 0))
	content := func(p string) func(testing.TB, string) {
		return func(t testing.TB, path string) { write(t, path, []byte(p)) }
	}
	return []Harm{
		{"emptied", content("")},
		{"cut", func(t testing.TB, path string) {
			st, err := os.Stat(path)
			must(t, err)
			must(t, os.Truncate(path, 1+r.Int64N(max(1, st.Size()-2))))
		}},
		{"random bytes", func(t testing.TB, path string) {
			p := make([]byte, 1+r.IntN(5000))
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			write(t, path, p)
		}},
		{"zeros", func(t testing.TB, path string) {
			st, err := os.Stat(path)
			must(t, err)
			write(t, path, make([]byte, st.Size()))
		}},
		{"a list", content("[]")},
		{"null", content("null\n")},
		{"a number", content("-1")},
		{"text", content(`"{}"`)},
		{"two objects", content("{}{}")},
		{"too large", func(t testing.TB, path string) { must(t, os.Truncate(path, harmedSize)) }},
		{"a directory", func(t testing.TB, path string) {
			must(t, os.Remove(path))
			must(t, os.MkdirAll(filepath.Join(path, "in it"), 0o700))
		}},
		{"a FIFO", func(t testing.TB, path string) {
			must(t, os.Remove(path))
			must(t, unix.Mkfifo(path, 0o600))
		}},
		{"a link to nothing", func(t testing.TB, path string) {
			must(t, os.Remove(path))
			must(t, os.Symlink("nowhere", path))
		}},
	}
}

// Lose removes a file.
func Lose(t testing.TB, path string) {
	t.Helper()
	must(t, os.Remove(path))
}

// MustLieAside insists that what was made of a file lies beside its place, in one copy and unchanged in kind.
func MustLieAside(t testing.TB, path string, kind fs.FileMode) {
	t.Helper()
	aside, err := filepath.Glob(path + ".damaged-*")
	must(t, err)
	if len(aside) != 1 {
		t.Fatalf("beside %s lies %q, want one", path, aside)
	}
	st, err := os.Lstat(aside[0])
	must(t, err)
	if st.Mode().Type() != kind {
		t.Errorf("%s is %v, want %v", aside[0], st.Mode(), kind)
	}
}

// Kind returns what is at a path, as MustLieAside wants it.
func Kind(t testing.TB, path string) fs.FileMode {
	t.Helper()
	st, err := os.Lstat(path)
	must(t, err)
	return st.Mode().Type()
}

func write(t testing.TB, path string, p []byte) {
	t.Helper()
	must(t, os.WriteFile(path, p, 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
