package images_test

import (
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
			testbed.Must(t, s.PullOrdinary(t.Context(), src, "overlayfs"))
			_, err := s.Snapctl(t.Context(), "pull", lazy)
			testbed.Must(t, err)
			sameTree(t, s, lazy, src, func(string) bool { return false })
			testbed.RunImage(t, s, lazy, p.Name, "remora", p)
		})
	}
}

func sameTree(t *testing.T, s *testbed.Stack, lazy, src string, unlisted func(string) bool) {
	t.Helper()
	want, err := testbed.Tree(testbed.MountImage(t, s, src, "overlayfs"))
	testbed.Must(t, err)
	got, err := testbed.Tree(testbed.MountImage(t, s, lazy, "remora"))
	testbed.Must(t, err)
	// The root directory is made by each snapshotter itself.
	if err := testbed.CompareTrees(got, want, func(p string) bool { return p == "." || unlisted(p) }); err != nil {
		t.Error(err)
	}
	t.Logf("%d paths equal", len(want))
}
