package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev/mounts"
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

// waitFor waits for what must come. Its patience says nothing of how fast that should be.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 2400 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}

// unmount takes a mount away and returns when its device is free. Tests run side by side: a program that another is about to
// start has a copy of every open file until then, and a container one of every mount.
func unmount(t *testing.T, dir string) {
	t.Helper()
	at, err := mounts.Own()
	must(t, err)
	at = slices.DeleteFunc(at, func(m mounts.Mount) bool { return m.Dir != dir })
	waitFor(t, dir+" to be used by nobody", func() bool {
		err = unix.Unmount(dir, 0)
		return !errors.Is(err, unix.EBUSY)
	})
	must(t, err)
	for _, m := range at {
		waitFor(t, m.Source+" to be free", func() bool {
			f, err := os.OpenFile(m.Source, os.O_RDONLY|unix.O_EXCL, 0)
			if err == nil {
				f.Close()
			}
			return !errors.Is(err, unix.EBUSY)
		})
	}
}

// copyOfMounts starts a process in a mount namespace of its own that keeps its copies of the mounts on and below a directory
// until it is told to end. It gives up those of tests that run beside this one.
func copyOfMounts(t *testing.T, dir string) (sleeper *exec.Cmd, end func()) {
	t.Helper()
	const script = `cut -d" " -f5 /proc/self/mountinfo | grep "^$1/" | grep -v "^$2" | tac | while read -r m; do umount -l "$m" 2>/dev/null; done; exec sleep 1000`
	sleeper = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", os.TempDir(), dir)
	must(t, sleeper.Start())
	end = func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	}
	t.Cleanup(end)
	waitFor(t, "the copy of the mounts", func() bool {
		p, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", sleeper.Process.Pid))
		return err == nil && strings.TrimSpace(string(p)) == "sleep"
	})
	return sleeper, end
}

// pushed puts a program's image into the registry: NAME:src as it is, NAME:lazy converted.
func pushed(t *testing.T, s *testbed.Stack, p testbed.Program) (src, lazy string) {
	t.Helper()
	layout, err := p.Layout(t.Context())
	must(t, err)
	src, lazy = s.Ref(p.Name+":src"), s.Ref(p.Name+":lazy")
	must(t, s.Push(t.Context(), layout, "src", p.Name+":src"))
	layout, err = p.LazyLayout(t.Context())
	must(t, err)
	must(t, s.Push(t.Context(), layout, "lazy", p.Name+":lazy"))
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
