package volume

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// TestFormat1: a volume that was written in the first version of the format, with a checkpoint and segments since, is whole, reads as
// it did, and can be written to. Its head is of the second version from then on.
func TestFormat1(t *testing.T) {
	t.Parallel()
	st := newTestStore(t)
	want := load(t, st, "testdata/format1.tar.gz")
	first := func() bool {
		h, err := Lookup(t.Context(), st, "v")
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := st.Get(t.Context(), headKey(h.ID), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		return strings.HasPrefix(string(p), "remora-head 1 ")
	}
	if !first() {
		t.Fatal("what is stored is not of the first version")
	}
	if r := mustCheck(t, st); r.Segments == 0 || r.Nodes == 0 {
		t.Fatalf("%+v: want segments and a map", r)
	}
	h, err := Lookup(t.Context(), st, "v")
	if err != nil {
		t.Fatal(err)
	}
	v, err := openVolume(t, st, newSimNode(t), h.ID, Options{})
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, v, want)
	if first() {
		t.Error("a volume that was taken has a head of the first version still: an older program would not know its segments")
	}
	for i := range 100 { // and another checkpoint
		copy(want[i*Block:], bytes.Repeat([]byte{byte(i)}, Block))
		mustSet(t, v, i, byte(i))
		mustFlush(t, v)
	}
	mustHold(t, v, want)
	if err := v.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// load stores the objects of an archive, and returns what its last file says that the volume holds.
func load(t *testing.T, st *testStore, name string) (want []byte) {
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return want
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "want" {
			want = p
		} else if _, err := st.Put(t.Context(), h.Name, p); err != nil {
			t.Fatal(err)
		}
	}
}
