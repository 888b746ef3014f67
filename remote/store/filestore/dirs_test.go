package filestore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestNothingMadeElsewhere: what a put that is under way makes is made in the store, not in what is where the store was.
func TestNothingMadeElsewhere(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "store")
	s, err := Make(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(dir, dir+".aside"), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := s.keyDir(filepath.Join(dir, "v", "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory made where the store was: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v are where the store was (%v)", left, err)
	}
	if err := errors.Join(os.Remove(dir), os.Rename(dir+".aside", dir), s.keyDir(filepath.Join(dir, "v", "x"))); err != nil {
		t.Error(err)
	}
}
