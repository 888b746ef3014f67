package testbed

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// BestBackend is what remorad chooses here by itself.
const BestBackend = "precontent"

// Pushed puts a program's image into the registry: NAME:src as it is, NAME:lazy converted.
func Pushed(t *testing.T, s *Stack, p Program) (src, lazy string) {
	t.Helper()
	layout, err := p.Layout(t.Context())
	Must(t, err)
	src, lazy = s.Ref(p.Name+":src"), s.Ref(p.Name+":lazy")
	Must(t, s.Push(t.Context(), layout, "src", p.Name+":src"))
	layout, err = p.LazyLayout(t.Context())
	Must(t, err)
	Must(t, s.Push(t.Context(), layout, "lazy", p.Name+":lazy"))
	return src, lazy
}

// MountImage mounts an image's root file system, read-only, by a view.
func MountImage(t *testing.T, s *Stack, ref, snapshotter string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	Must(t, os.Mkdir(dir, 0o755))
	_, err := s.Ctr(t.Context(), "images", "mount", "--snapshotter", snapshotter, ref, dir)
	Must(t, err)
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_, err := s.Ctr(context.Background(), "images", "unmount", "--rm", "--snapshotter", snapshotter, dir)
		if err != nil && !strings.Contains(err.Error(), "not found") {
			t.Log(err)
		}
	})
	return dir
}

// RunImage runs a program in an image and insists on its output.
func RunImage(t *testing.T, s *Stack, ref, id, snapshotter string, p Program) {
	t.Helper()
	out, err := s.Ctr(t.Context(), append([]string{"run", "--rm", "--snapshotter", snapshotter, ref, id}, p.Args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(out, p.Want) {
		t.Fatalf("%s printed %q, want %q", p.Name, out, p.Want)
	}
}

// Python is the image of tests that need just one.
var Python = Programs[0]
