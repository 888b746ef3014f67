package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// published has the directories whose Go code is made of .proto files.
var published = []string{"../../../cmd/control/v1"}

// TestGeneratedCodeIsFresh makes the code anew and compares it with what is committed.
func TestGeneratedCodeIsFresh(t *testing.T) {
	for _, dir := range published {
		out := t.TempDir()
		if err := generate(t.Context(), dir, out); err != nil {
			t.Fatal(err)
		}
		want, got := goFiles(t, out), goFiles(t, dir)
		if !slices.Equal(want, got) {
			t.Errorf("%s has the files %q, its .proto files make %q: run make generate, and remove what is left over", dir, got, want)
		}
		for _, name := range want {
			made, err := os.ReadFile(filepath.Join(out, name))
			if err != nil {
				t.Fatal(err)
			}
			if there, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(made, there) {
				t.Errorf("%s is not what its .proto file says (%v): run make generate", filepath.Join(dir, name), err)
			}
		}
	}
}

// goFiles lists the generated files of a directory.
func goFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.pb.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s has no generated files (%v)", dir, err)
	}
	for _, p := range paths {
		names = append(names, filepath.Base(p))
	}
	return names
}

func TestGenerateSaysWhatIsWrong(t *testing.T) {
	dir, err := os.MkdirTemp(".", "testdata-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := generate(t.Context(), dir, t.TempDir()); err == nil {
		t.Error("a directory without .proto files was taken")
	}
	wrong := []byte("syntax = \"proto3\";\nmessage M { Nothing n = 1; }\n")
	if err := os.WriteFile(filepath.Join(dir, "wrong.proto"), wrong, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := generate(t.Context(), dir, t.TempDir()); err == nil {
		t.Error("a message of an unknown type was taken")
	}
	if err := generate(t.Context(), t.TempDir(), t.TempDir()); err == nil {
		t.Error("a directory outside the module was taken")
	}
}
