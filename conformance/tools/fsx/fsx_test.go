package fsx

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRun: an ordinary file passes, by seeds that differ.
func TestRun(t *testing.T) {
	for seed := range uint64(8) {
		if err := Run(filepath.Join(t.TempDir(), "file"), Options{Size: 1 << 20, Steps: 200, Seed: seed}); err != nil {
			t.Error(err)
		}
	}
}

// TestDiffers: one wrong byte is found by each way of reading.
func TestDiffers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, page), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	x := &file{f: f, model: make([]byte, page), buf: OnPage(largest)}
	if err := x.compare(0, page); err != nil {
		t.Error(err)
	}
	x.model[1000] = 1
	if x.compare(0, page) == nil || x.same(make([]byte, 100), 950) == nil {
		t.Error("a wrong byte was not found")
	}
	if err := x.same(make([]byte, 100), 100); err != nil {
		t.Error(err)
	}
}
