package conformance_test

import (
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestTreeEquality compares what a lazy image shows with what containerd unpacks from its source.
func TestTreeEquality(t *testing.T) {
	t.Parallel()
	s := newStack(t, testbed.Options{})
	for _, p := range testbed.Programs {
		t.Run(p.Name, func(t *testing.T) {
			src, lazy := pushed(t, s, p)
			must(t, s.PullOrdinary(t.Context(), src, "overlayfs"))
			_, err := s.Snapctl(t.Context(), "pull", lazy)
			must(t, err)
			sameTree(t, s, lazy, src, func(string) bool { return false })
			run(t, s, lazy, p.Name, "remora", p)
		})
	}
}

func sameTree(t *testing.T, s *testbed.Stack, lazy, src string, unlisted func(string) bool) {
	t.Helper()
	want, err := testbed.Tree(mountImage(t, s, src, "overlayfs"))
	must(t, err)
	got, err := testbed.Tree(mountImage(t, s, lazy, "remora"))
	must(t, err)
	// The root directory is made by each snapshotter itself.
	if err := testbed.CompareTrees(got, want, func(p string) bool { return p == "." || unlisted(p) }); err != nil {
		t.Error(err)
	}
	t.Logf("%d paths equal", len(want))
}
