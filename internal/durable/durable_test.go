package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/remora-storage/remora/internal/durable"
)

// contains insists on what a directory holds: nothing but these files with these contents.
func contains(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := want[e.Name()]; !ok {
			t.Errorf("%s was left", e.Name())
		}
	}
	for name, content := range want {
		if p, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(p) != content {
			t.Errorf("%s holds %q, want %q: %v", name, p, content, err)
		}
	}
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode()
}

// TestSaveJSON: a file is replaced as a whole; a directory that is not there and a value that is no JSON are errors, and
// change nothing.
func TestSaveJSON(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "record.json")
	for _, v := range []string{"longer than what comes", "b"} {
		if err := durable.SaveJSON(path, v); err != nil {
			t.Fatal(err)
		}
		contains(t, dir, map[string]string{"record.json": `"` + v + `"`})
	}
	if err := durable.SaveJSON(filepath.Join(dir, "none", "x"), 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("saved into a directory that is not there: %v", err)
	}
	if err := durable.SaveJSON(path, func() {}); err == nil {
		t.Error("saved what is no JSON")
	}
	contains(t, dir, map[string]string{"record.json": `"b"`})
}

// TestMode: a new file gets its mode whatever the umask, and one that is replaced keeps its own.
func TestMode(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := filepath.Join(t.TempDir(), "x")
	for _, give := range []fs.FileMode{0o644, 0o600} {
		if err := durable.Replace(path, nil, give); err != nil {
			t.Fatal(err)
		}
		if got := mode(t, path); got != 0o644 {
			t.Errorf("replaced with mode %v: got %v", give, got)
		}
	}
	if err := os.Chmod(path, 0o440); err != nil {
		t.Fatal(err)
	}
	if err := durable.Replace(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := mode(t, path); got != 0o440 {
		t.Errorf("a file of mode 0440 has %v after it was replaced", got)
	}
}

// TestFailure: after a replacement that failed, or was given up, there is the old content and nothing else.
func TestFailure(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken") // a file cannot be renamed to a directory
	if err := os.Mkdir(taken, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.Replace(taken, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if err := os.Remove(taken); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x")
	if err := durable.Replace(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := durable.Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("half"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	contains(t, dir, map[string]string{"x": "old"})
}

// TestSweep: what a crash has left goes; what is being written stays, and gets its name.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{".new-1234": "left by a crash", "new": "ours", ".newest": "ours"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := durable.Create(filepath.Join(dir, "x"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("whole"); err != nil {
		t.Fatal(err)
	}
	if err := durable.Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	contains(t, dir, map[string]string{"new": "ours", ".newest": "ours", "x": "whole"})
	if err := durable.Sweep(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// TestMany: several replace one file while somebody sweeps. Each succeeds, a reader finds one of the contents, whole.
func TestMany(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	if err := durable.Replace(path, []byte("e"), 0o600); err != nil {
		t.Fatal(err)
	}
	var writing sync.WaitGroup
	for _, letter := range []string{"a", "b", "c", "d"} {
		content := []byte(strings.Repeat(letter, 10000))
		writing.Go(func() {
			for range 50 {
				if err := durable.Replace(path, content, 0o600); err != nil {
					t.Error(err)
				}
				if err := durable.Sweep(dir); err != nil {
					t.Error(err)
				}
				p, err := os.ReadFile(path)
				if err != nil || len(p) == 0 || strings.Trim(string(p), string(p[:1])) != "" {
					t.Errorf("%d bytes are not of one writer: %v", len(p), err)
				}
			}
		})
	}
	writing.Wait()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v is there: %v", entries, err)
	}
}

// TestRename: a file that the caller wrote gets its name; one that is not there is an error.
func TestRename(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := durable.Rename(from, to); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("renamed what is not there: %v", err)
	}
	if err := os.WriteFile(from, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.Rename(from, to); err != nil {
		t.Fatal(err)
	}
	contains(t, dir, map[string]string{"b": "a"})
}
