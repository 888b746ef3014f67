package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestWorkSweeps: what runs that were killed have left goes, and what is old; what is in use stays.
func TestWorkSweeps(t *testing.T) {
	u := newUser(t)
	root := u.path("cache/remora/convert")
	old := time.Now().Add(-time.Hour)
	makeDir := func(name string, when time.Time) string {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(dir, when, when); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	killed, young, used := makeDir("run-killed", old), makeDir("run-young", time.Now()), makeDir("run-used", old)
	lock, err := lockDir(used)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	makeDir("layers", time.Now())
	ancient, recent := filepath.Join(root, "layers", "ancient"), filepath.Join(root, "layers", "recent")
	for path, when := range map[string]time.Time{ancient: time.Now().Add(-knownFor - time.Hour), recent: old} {
		if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	w, err := workDir()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{killed: false, young: true, used: true, ancient: false, recent: true, w.dir: true} {
		if exists(path) != want {
			t.Errorf("%s is there: %v, want %v", filepath.Base(path), !want, want)
		}
	}
	if _, err := lockDir(w.dir); err == nil {
		t.Error("a run's directory is not locked")
	}
	w.close()
	if exists(w.dir) {
		t.Error("a run's directory stays")
	}
}

// TestWorkRemembers layers, and where they are; what is damaged is as if it were not there.
func TestWorkRemembers(t *testing.T) {
	newUser(t)
	w, err := workDir()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if w.known("key") != nil || w.places("key") != nil {
		t.Error("something is known before it was told")
	}
	r := &layerResult{Descriptor: ocispec.Descriptor{Digest: digest.FromString("a"), Size: 5}, DiffID: digest.FromString("b"),
		Missed: []string{"/x"}}
	for _, place := range []string{"r.example.com/a", "", "r.example.com/b", "r.example.com/a"} {
		w.remember("key", r, place)
	}
	if got := w.known("key"); got == nil || got.Descriptor.Digest != r.Descriptor.Digest || got.DiffID != r.DiffID || len(got.Missed) != 1 {
		t.Errorf("known: %+v", got)
	}
	if got := w.places("key"); len(got) != 2 {
		t.Errorf("places: %v", got)
	}
	for _, text := range []string{"", "not JSON", `{"layer":{"Descriptor":{"digest":"sha256:short"}}}`} {
		if err := os.WriteFile(w.path("key"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := w.known("key"); got != nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
	f, err := w.file("x-")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if exists(f.Name()) {
		t.Error("a file of a run has a name")
	}
}
