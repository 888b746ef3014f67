package images_test

import (
	"archive/tar"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/conformance/testbed"
)

// TestDetachAndLongView: of a view of very many layers containerd shortens the paths of the directories. While it is mounted, detaching is
// refused all the same. While only such a view of overlayfs is, whose snapshots have numbers of their own, it is not.
func TestDetachAndLongView(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	layout := filepath.Join(t.TempDir(), "layout")
	tars := make([]func(*tar.Writer) error, 100)
	for i := range tars {
		tars[i] = randomLayer(uint64(i), 100)
	}
	testbed.Must(t, testbed.WriteTars(layout, "src", tars...))
	testbed.Must(t, s.Push(t.Context(), layout, "src", "many:src"))
	ref := s.Ref("many:src")
	_, err := s.Snapctl(t.Context(), "pull", ref)
	testbed.Must(t, err)
	t.Run("of ours", func(t *testing.T) {
		dir := testbed.MountImage(t, s, ref, "remora")
		all, err := mounts.Own()
		testbed.Must(t, err)
		for _, m := range all {
			if lowers := m.Lowers(); m.Dir == dir && (len(lowers) != len(tars) || filepath.IsAbs(lowers[0])) {
				t.Fatalf("nothing was shortened: %s", m.Options)
			}
		}
		if out, err := s.Snapctl(t.Context(), "detach", "--all"); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("detached under a view: %s, %v", out, err)
		}
	})
	t.Run("of overlayfs", func(t *testing.T) {
		ordinary := s.In(s.Namespace + "-ordinary")
		testbed.Must(t, ordinary.PullOrdinary(t.Context(), ref, "overlayfs"))
		testbed.MountImage(t, ordinary, ref, "overlayfs")
		out, err := s.Snapctl(t.Context(), "detach", "--all")
		if err != nil || !strings.Contains(out, "100 layers") {
			t.Errorf("not detached: %s, %v", out, err)
		}
	})
}
