package images_test

import (
	"sync"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestTreeEquality compares what a lazy image shows with what containerd unpacks from its source.
func TestTreeEquality(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	for _, p := range testbed.Programs {
		t.Run(p.Name, func(t *testing.T) {
			src, lazy := testbed.Pushed(t, s, p)
			_, err := s.Snapctl(t.Context(), "pull", lazy)
			testbed.Must(t, err)
			sameTree(t, s, lazy, src, func(string) bool { return false })
			testbed.RunImage(t, s, lazy, p.Name, "remora", p)
		})
	}
}

// sameTree compares what remorad shows of an image with what containerd unpacks of another.
func sameTree(t *testing.T, s *testbed.Stack, lazy, src string, unlisted func(string) bool) {
	t.Helper()
	want := ordinaryTree(t, s, src)
	got, err := testbed.Tree(testbed.MountImage(t, s, lazy, "remora"))
	testbed.Must(t, err)
	// The root directory is made by each snapshotter itself.
	if err := testbed.CompareTrees(got, want, func(p string) bool { return p == "." || unlisted(p) }); err != nil {
		t.Error(err)
	}
	t.Logf("%d paths equal", len(want))
}

// unpacked are the trees that containerd unpacked in this process, by the image's manifest.
var unpacked sync.Map // digest.Digest to *unpacking

type unpacking struct {
	once sync.Once
	tree map[string]testbed.Entry
}

// ordinaryTree is the tree of an image as containerd unpacks it into overlayfs. Each image is unpacked once a process.
func ordinaryTree(t *testing.T, s *testbed.Stack, ref string) map[string]testbed.Entry {
	t.Helper()
	manifest, err := s.Manifest(t.Context(), ref)
	testbed.Must(t, err)
	kept, _ := unpacked.LoadOrStore(manifest, new(unpacking))
	u := kept.(*unpacking)
	u.once.Do(func() {
		apart := s.In(s.Namespace + "-unpacked") // so that the test's own namespace has no blob by this
		testbed.Must(t, apart.PullOrdinary(t.Context(), ref, "overlayfs"))
		tree, err := testbed.Tree(testbed.MountImage(t, apart, ref, "overlayfs"))
		testbed.Must(t, err)
		u.tree = tree
	})
	if u.tree == nil {
		t.Fatalf("the tree of %s could not be read before", ref)
	}
	return u.tree
}
