package images_test

import (
	"archive/tar"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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

// TestLostRootOfOrdinary: layers that containerd unpacked, since remorad is told to leave them to it, are made whole after their root was
// lost, though neither containerd's content store nor their own repository has them: from the repository of another image, or once a
// login lets remorad into the one that has them. An image of which nobody has a layer is removed, and the next pull begins anew.
func TestLostRootOfOrdinary(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient + "[import]\nmode = \"ordinary\"\n"})
	dir, p := t.TempDir(), newFaultyProxy(t, s)
	closed := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		user, password, _ := r.BasicAuth()
		if strings.Contains(r.URL.Path, "/closed/") && (user != testbed.User || password != testbed.Password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="closed"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		pass.ServeHTTP(w, r)
	})
	p.every.Store(true)
	refs := map[string]string{"moved": s.Ref("moved:1"), "closed": p.Listener.Addr().String() + "/closed:1", "lost": s.Ref("lost:1")}
	pull := func(ref string) {
		t.Helper()
		_, err := s.Ctr(t.Context(), "images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", ref)
		testbed.Must(t, err)
	}
	for i, name := range []string{"moved", "closed", "lost"} {
		layout := filepath.Join(dir, name)
		testbed.Must(t, testbed.WriteTars(layout, "src", randomLayer(uint64(60+i), 1<<20), randomLayer(uint64(70+i), 1<<20)))
		testbed.Must(t, s.Push(t.Context(), layout, "src", name+":1"))
		pull(refs[name])
		ordinaryTree(t, s, s.Ref(name+":1"))
	}
	if n := claimed(t, s); n != 0 {
		t.Fatalf("%d layers are claimed that are left to containerd", n)
	}
	p.fault.Store(&closed)
	for name := range refs {
		for _, l := range manifestOf(t, filepath.Join(dir, name), "src").Layers {
			_, err := s.Ctr(t.Context(), "content", "rm", l.Digest.String())
			testbed.Must(t, err)
		}
	}
	for _, name := range []string{"moved", "lost"} {
		deleteBlobs(t, s, filepath.Join(dir, name), "src", name)
	}
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
	testbed.Must(t, os.RemoveAll(s.Root))
	testbed.Must(t, s.StartRemorad())
	nothing := func(string) bool { return false }
	start := func(name, id string) error {
		_, err := s.Ctr(t.Context(), "run", "--rm", "--snapshotter", "remora", refs[name], id, "true")
		return err
	}
	for _, name := range []string{"moved", "closed"} {
		if start(name, "early-"+name) == nil {
			t.Errorf("%s runs, and nobody has its layers, or may read them", name)
		}
	}
	testbed.Must(t, s.Push(t.Context(), filepath.Join(dir, "moved"), "src", "twin:1"))
	pull(s.Ref("twin:1"))
	sameTree(t, s, refs["moved"], s.Ref("twin:1"), nothing)
	login := filepath.Join(t.TempDir(), "password")
	testbed.Must(t, os.WriteFile(login, []byte(testbed.Password), 0o600))
	_, err := s.Snapctl(t.Context(), "pull", "--user", testbed.User, "--password-file", login, refs["closed"])
	testbed.Must(t, err)
	sameTree(t, s, refs["closed"], s.Ref("closed:1"), nothing)
	try := 0
	testbed.WaitFor(t, "the image to be removed", func() bool {
		time.Sleep(time.Second) // as a kubelet waits
		try++
		if start("lost", fmt.Sprint("c", try)) == nil {
			t.Fatal("it runs")
		}
		names, err := s.Ctr(t.Context(), "images", "ls", "-q")
		testbed.Must(t, err)
		return !strings.Contains(names, "lost")
	})
	testbed.Must(t, s.Push(t.Context(), filepath.Join(dir, "lost"), "src", "lost:1"))
	pull(refs["lost"])
	sameTree(t, s, refs["lost"], refs["lost"], nothing)
	if n := claimed(t, s); n != 4 {
		t.Errorf("%d layers are supplied here, not those of the two images that were never removed", n)
	}
}

// TestLostForGood: what a lost root takes away for good is named by status, by doctor and in the log, and nothing else of containerd's is
// broken: a snapshot that was committed by hand, and an image that was loaded, of which containerd has dropped a blob. It stays in
// containerd until somebody removes it, and is whole once it is loaded again.
func TestLostForGood(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	dir := t.TempDir()
	for name, seed := range map[string]uint64{"pulled": 6, "loaded": 7} {
		testbed.Must(t, testbed.WriteTars(filepath.Join(dir, name), "src", randomLayer(seed, 1<<20)))
		testbed.Must(t, s.Push(t.Context(), filepath.Join(dir, name), "src", name+":1"))
	}
	pulled, loaded, archive := s.Ref("pulled:1"), "example.com/loaded:1", filepath.Join(dir, "archive.tar")
	ctr := func(args ...string) string {
		t.Helper()
		out, err := s.Ctr(t.Context(), args...)
		testbed.Must(t, err)
		return out
	}
	testbed.Must(t, s.PullOrdinary(t.Context(), s.Ref("loaded:1"), "overlayfs"))
	want := ordinaryTree(t, s, s.Ref("loaded:1"))
	ctr("images", "tag", s.Ref("loaded:1"), loaded)
	ctr("images", "export", archive, loaded)
	removeAll(t, s, s.Ref("loaded:1"), loaded)
	apart := s.In(s.Namespace + "-apart") // of blobs that came from a registry, containerd says so in all namespaces that have them
	_, err := apart.Ctr(t.Context(), "images", "import", "--snapshotter", "remora", archive)
	testbed.Must(t, err)
	c, err := client.New(s.Socket)
	testbed.Must(t, err)
	defer c.Close()
	ctx := namespaces.WithNamespace(t.Context(), apart.Namespace)
	manifest, err := images.Manifest(ctx, c.ContentStore(), imageTarget(ctx, t, c, loaded), platforms.Default())
	testbed.Must(t, err)
	testbed.Must(t, c.ContentStore().Delete(ctx, manifest.Layers[0].Digest))

	ctr("images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", pulled)
	t.Run("before", func(t *testing.T) { sameTree(t, s, pulled, pulled, notListed) })
	ctr("snapshots", "--snapshotter", "remora", "prepare", "work")
	ctr("snapshots", "--snapshotter", "remora", "commit", "mine", "work")
	testbed.WaitFor(t, "nothing to use a layer", func() bool {
		_, err := s.Snapctl(t.Context(), "detach", "--all")
		return err == nil
	})
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
	testbed.Must(t, os.RemoveAll(s.Root))
	testbed.Must(t, s.StartRemorad())
	snapshot := "snapshot " + s.Namespace + "/mine"
	testbed.WaitFor(t, "status to name what was lost", func() bool {
		out, err := s.Snapctl(t.Context(), "status")
		testbed.Must(t, err)
		return strings.Contains(out, snapshot+" is broken") && strings.Contains(out, loaded) && strings.Contains(out, "failed")
	})
	doctor, _ := s.Snapctl(t.Context(), "doctor") // which finds more that is wrong here
	log, err := os.ReadFile(s.RemoradLog())
	testbed.Must(t, err)
	for _, name := range []string{"warning  " + snapshot, " of " + loaded + ": failed"} {
		if !strings.Contains(doctor, name) {
			t.Errorf("doctor does not say %q:\n%s", name, doctor)
		}
	}
	if !strings.Contains(string(log), "key=mine") {
		t.Error("the log does not name the snapshot")
	}
	sameTree(t, s, pulled, pulled, notListed)
	if all, err := apart.Ctr(t.Context(), "images", "ls", "-q"); err != nil || !strings.Contains(all, loaded) {
		t.Errorf("images: %s, %v", all, err)
	}
	_, err = apart.Ctr(t.Context(), "images", "import", "--snapshotter", "remora", archive)
	testbed.Must(t, err)
	got, err := testbed.Tree(testbed.MountImage(t, apart, loaded, "remora"))
	testbed.Must(t, err)
	if err := testbed.CompareTrees(got, want, func(path string) bool { return path == "." }); err != nil {
		t.Errorf("loaded again: %v", err)
	}
}

func imageTarget(ctx context.Context, t *testing.T, c *client.Client, name string) ocispec.Descriptor {
	t.Helper()
	image, err := c.ImageService().Get(ctx, name)
	testbed.Must(t, err)
	return image.Target
}
