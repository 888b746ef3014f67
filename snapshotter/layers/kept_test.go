package layers

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// TestIndexesAreBounded: the oldest indexes go when they are too many.
func TestIndexesAreBounded(t *testing.T) {
	x := Indexes{dir: filepath.Join(t.TempDir(), "indexes"), log: imagetest.LogOf(t)}
	old, young := digest.FromString("old"), digest.FromString("young")
	if err := x.put(old, []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(x.path(old), maxIndexBytes); err != nil { // sparse
		t.Fatal(err)
	}
	if err := os.Chtimes(x.path(old), time.Unix(1_000_000_000, 0), time.Unix(1_000_000_000, 0)); err != nil {
		t.Fatal(err)
	}
	if err := x.put(young, []byte("young")); err != nil {
		t.Fatal(err)
	}
	if _, err := x.get(old); err == nil {
		t.Error("the oldest is still there")
	}
	if p, err := x.get(young); err != nil || string(p) != "young" {
		t.Errorf("got %q, %v", p, err)
	}
}
