package images_test

import (
	"archive/tar"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestLostRoot: a root that was deleted whole while remorad was away takes no image from the node: not one that shares layers with an
// image of another repository, nor one with a layer between others of which no image can be made, nor one that came from an archive and
// that containerd had unpacked. All are whole, and are pulled again, also into another namespace, without anything being removed.
func TestLostRoot(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	dir := t.TempDir()
	low := entries(tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 7},
		tar.Header{Name: "d/gone", Typeflag: tar.TypeReg, Mode: 0o600}, tar.Header{Name: "d/kept", Typeflag: tar.TypeReg, Mode: 0o4755})
	odd := entries(tar.Header{Name: "d/new", Typeflag: tar.TypeReg, Mode: 0o640, Gid: 9},
		tar.Header{Name: "d/.wh.gone", Typeflag: tar.TypeReg},
		tar.Header{Name: "odd", Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 5000, Devminor: 1})
	first, second, loaded := s.Ref("first:1"), s.Ref("second:1"), "example.com/loaded:1"
	for name, layers := range map[string][]func(*tar.Writer) error{
		"first": {low, randomLayer(4, 1<<20)}, "second": {low, odd, randomLayer(5, 1<<20)},
	} {
		testbed.Must(t, testbed.WriteTars(filepath.Join(dir, name), "src", layers...))
		testbed.Must(t, s.Push(t.Context(), filepath.Join(dir, name), "src", name+":1"))
	}
	testbed.Must(t, s.PullOrdinary(t.Context(), second, "overlayfs"))
	archive := filepath.Join(dir, "archive.tar")
	_, err := s.Ctr(t.Context(), "images", "tag", second, loaded)
	testbed.Must(t, err)
	_, err = s.Ctr(t.Context(), "images", "export", archive, loaded)
	testbed.Must(t, err)
	removeAll(t, s, second, loaded)
	apart := s.In(s.Namespace + "-apart") // of blobs that came from a registry, containerd says so in all namespaces that have them
	_, err = apart.Ctr(t.Context(), "images", "import", "--snapshotter", "remora", archive)
	testbed.Must(t, err)
	pull := func(s *testbed.Stack, ref string) {
		_, err := s.Ctr(t.Context(), "images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", ref)
		testbed.Must(t, err)
	}
	all := func(t *testing.T) {
		sameTree(t, s, first, first, notListed)
		sameTree(t, s, second, second, notListed)
		sameTree(t, apart, loaded, second, notListed)
	}
	pull(s, first)
	pull(s, second)
	t.Run("before", all)
	testbed.WaitFor(t, "nothing to use a layer", func() bool { // a process that starts has all mounts for a moment
		_, err := s.Snapctl(t.Context(), "detach", "--all")
		return err == nil
	})
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
	testbed.Must(t, os.RemoveAll(s.Root))
	testbed.Must(t, s.StartRemorad())
	t.Run("after", all)
	pull(s, first)
	pull(s, second)
	t.Run("pulled again", all)
	other := s.In(s.Namespace + "-other")
	pull(other, second)
	sameTree(t, other, second, second, notListed)
}

// notListed is the directory that the upper layers do not list: each unpacker gives it a time of its own.
func notListed(path string) bool { return path == "d" }
