package suite

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/remora-storage/remora/blockdev"
)

// RAM returns a device in memory that ends with the test.
func RAM(t testing.TB, size int64) *blockdev.RAM {
	t.Helper()
	d, err := blockdev.NewRAM(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// File returns a device on a new sparse file that ends with the test.
func File(t testing.TB, size int64, opts blockdev.FileOptions) *blockdev.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	d, err := blockdev.OpenFile(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}
