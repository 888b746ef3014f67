package conformance_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/conformance/testbed"
)

// TestRootElsewhere: the root may lie on file systems that cannot do everything.
func TestRootElsewhere(t *testing.T) {
	t.Parallel()
	needRoot(t)
	ways := []struct {
		name  string
		works []string // back ends, the one that is chosen first
		mount func(dir string) error
	}{
		{"xfs", backends, func(dir string) error {
			file := dir + ".xfs"
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				return err
			}
			if err := os.Truncate(file, 4<<30); err != nil {
				return err
			}
			if _, err := testbed.Output(t.Context(), nil, "mkfs.xfs", "-q", file); err != nil {
				return err
			}
			_, err := testbed.Output(t.Context(), nil, "mount", "-o", "loop", file, dir)
			return err
		}},
		{"tmpfs", backends[1:], func(dir string) error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2g") }},
		{"overlayfs", backends[1:], mountOverlay},
	}
	for _, way := range ways {
		for _, backend := range way.works[:rounds(1, len(way.works))] {
			elsewhere(t, way.name, backend, backend != way.works[0], way.mount)
		}
	}
}

func mountOverlay(dir string) error {
	parts := dir + ".parts"
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(parts, d), 0o755); err != nil {
			return err
		}
	}
	return unix.Mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", parts))
}

// TestScratchSeenElsewhere: a mount namespace that has a copy of the scratch file system's mount does not lead to a second one
// of the same file.
func TestScratchSeenElsewhere(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := rootOn(t, mountOverlay)
	s := newStack(t, testbed.Options{Root: root, LogLevel: "info"})
	scratch := filepath.Join(root, "scratch.ext4")
	devices := func() (all []string) {
		loops, err := blockdev.LoopFiles()
		must(t, err)
		for _, l := range loops {
			if l.File == scratch {
				all = append(all, l.Dev)
			}
		}
		return all
	}
	_, end := copyOfMounts(t, root)
	was := devices()
	leave := func() { // as remorad does by itself where it has no holder
		must(t, s.StopRemorad(syscall.SIGTERM))
		must(t, unix.Unmount(filepath.Join(root, "snapshots"), 0))
	}
	leave()
	must(t, s.StartRemorad())
	if now := devices(); len(was) != 1 || !slices.Equal(now, was) {
		t.Errorf("the file is on %q, was on %q", now, was)
	}
	_, lazy := pushed(t, s, testbed.Programs[2])
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	must(t, err)
	run(t, s, lazy, "one", "remora", testbed.Programs[2])
	removeAll(t, s, lazy)
	waitNoLayers(t, s)
	leave()
	end()
	waitFor(t, "the file to be free", func() bool { return len(devices()) == 0 })
	diskFileSystems[0].clean(t, scratch)
	must(t, s.StartRemorad())
}

// rootOn makes a root on a file system that mount makes.
func rootOn(t *testing.T, mount func(dir string) error) (root string) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o755))
	must(t, mount(root))
	t.Cleanup(func() {
		left, err := testbed.MountsUnder(root) // complete layers outlive remorad
		must(t, err)
		for i := len(left) - 1; i >= 0; i-- {
			unmount(t, left[i])
		}
		unmount(t, root) // loop devices let go of their files in the background
	})
	return root
}

// elsewhere takes an image through its life on a root that mount makes.
func elsewhere(t *testing.T, name, backend string, pinned bool, mount func(dir string) error) {
	t.Helper()
	config := ""
	if pinned {
		config = mountBy(backend)
	}
	t.Run(name+"/"+backend, func(t *testing.T) {
		root := rootOn(t, mount)
		s := newStack(t, testbed.Options{Root: root, LogLevel: "info", Config: config})
		_, lazy := pushed(t, s, python)
		_, err := s.Snapctl(t.Context(), "pull", lazy)
		must(t, err)
		lazyLayers(t, s, 3, backend)
		run(t, s, lazy, "one", "remora", python)
		_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, "sleeper", "sleep", "1000")
		must(t, err)
		must(t, s.RestartRemorad(syscall.SIGKILL))
		lazyLayers(t, s, 3, backend)
		run(t, s, lazy, "two", "remora", python)
		_, err = s.Ctr(t.Context(), "tasks", "rm", "-f", "sleeper")
		must(t, err)
		_, err = s.Ctr(t.Context(), "containers", "rm", "sleeper")
		must(t, err)
		_, err = s.Snapctl(t.Context(), "fetch", "--cache-only", lazy)
		must(t, err)
		run(t, s, lazy, "three", "remora", python)
		src := s.Ref("python:src")
		must(t, s.PullOrdinary(t.Context(), src, "overlayfs"))
		sameTree(t, s, lazy, src, func(string) bool { return false })
	})
}
