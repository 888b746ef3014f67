package index_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/remora-storage/remora/conformance/heap"
	"github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/layout"
)

func TestSplit(t *testing.T) {
	for _, want := range [][][]byte{nil, {[]byte("one")}, {[]byte("one"), nil, []byte("three")}} {
		got, err := index.Split(index.Join(want))
		if err != nil || len(got) != len(want) {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("got %q, want %q", got[i], want[i])
			}
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(index.Join([][]byte{[]byte("one"), nil, []byte("three")}))
	f.Fuzz(func(t *testing.T, p []byte) {
		var all [][]byte
		var err error
		heap.LayerMost(len(p)).Allocates(t, func() int64 { all, err = index.Split(p); return 0 })
		if err != nil {
			if !errors.Is(err, layout.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(index.Join(all), p) {
			t.Fatal("what was split does not join to the same")
		}
	})
}
