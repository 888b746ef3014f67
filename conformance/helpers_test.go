package conformance_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// newStack starts a stack that ends with the test and must leave nothing.
func newStack(t *testing.T, opts testbed.Options) *testbed.Stack {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	s, err := testbed.NewStack(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			p, _ := os.ReadFile(s.RemoradLog())
			t.Logf("remorad's log ends:\n%s", p[max(0, len(p)-20000):])
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if left, err := testbed.MountsUnder(dir); err != nil || len(left) > 0 {
			t.Errorf("mounts left: %v, %v", left, err)
		}
	})
	return s
}

// needRoot skips the tests of whole systems where only fast tests are wanted.
func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts containerd and mounts: not a fast test")
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
}

// bestBackend is what remorad chooses here by itself.
const bestBackend = "precontent"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pushed puts a program's image into the registry: NAME:src as it is, NAME:lazy converted.
func pushed(t *testing.T, s *testbed.Stack, p testbed.Program) (src, lazy string) {
	t.Helper()
	layout, err := p.Layout(t.Context())
	must(t, err)
	src, lazy = s.Ref(p.Name+":src"), s.Ref(p.Name+":lazy")
	must(t, s.Push(t.Context(), layout, "src", p.Name+":src"))
	args := []string{"convert", "oci:" + layout + ":src", lazy}
	if _, err := os.Stat(p.FilesList()); err == nil {
		args = append(args, "--prioritize", p.FilesList())
	}
	_, err = s.Snapctl(t.Context(), args...)
	must(t, err)
	return src, lazy
}

// mountImage mounts an image's root file system, read-only, by a view.
func mountImage(t *testing.T, s *testbed.Stack, ref, snapshotter string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(dir, 0o755))
	_, err := s.Ctr(t.Context(), "images", "mount", "--snapshotter", snapshotter, ref, dir)
	must(t, err)
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_, err := s.Ctr(context.Background(), "images", "unmount", "--rm", "--snapshotter", snapshotter, dir)
		if err != nil && !strings.Contains(err.Error(), "not found") {
			t.Log(err)
		}
	})
	return dir
}

// run runs a program in an image and insists on its output.
func run(t *testing.T, s *testbed.Stack, ref, id, snapshotter string, p testbed.Program) {
	t.Helper()
	out, err := s.Ctr(t.Context(), append([]string{"run", "--rm", "--snapshotter", snapshotter, ref, id}, p.Args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(out, p.Want) {
		t.Fatalf("%s printed %q, want %q", p.Name, out, p.Want)
	}
}
