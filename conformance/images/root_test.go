package images_test

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
	testbed.NeedRoot(t)
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
		for _, backend := range way.works[:testbed.Rounds(1, len(way.works))] {
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
	testbed.NeedRoot(t)
	root := rootOn(t, mountOverlay)
	s := testbed.New(t, testbed.Options{Root: root, LogLevel: "info"})
	scratch := filepath.Join(root, "scratch.ext4")
	devices := func() (all []string) {
		loops, err := blockdev.LoopFiles()
		testbed.Must(t, err)
		for _, l := range loops {
			if l.File == scratch {
				all = append(all, l.Dev)
			}
		}
		return all
	}
	_, end := testbed.CopyOfMounts(t, root)
	was := devices()
	leave := func() { // as remorad does by itself where it has no holder
		testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
		testbed.Must(t, unix.Unmount(filepath.Join(root, "snapshots"), 0))
	}
	leave()
	testbed.Must(t, s.StartRemorad())
	if now := devices(); len(was) != 1 || !slices.Equal(now, was) {
		t.Errorf("the file is on %q, was on %q", now, was)
	}
	_, lazy := testbed.Pushed(t, s, testbed.Programs[2])
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	testbed.RunImage(t, s, lazy, "one", "remora", testbed.Programs[2])
	removeAll(t, s, lazy)
	waitNoLayers(t, s)
	leave()
	end()
	testbed.WaitFor(t, "the file to be free", func() bool { return len(devices()) == 0 })
	testbed.FileSystems[0].Clean(t, scratch)
	testbed.Must(t, s.StartRemorad())
}

// rootOn makes a root on a file system that mount makes.
func rootOn(t *testing.T, mount func(dir string) error) (root string) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "root")
	testbed.Must(t, os.Mkdir(root, 0o755))
	testbed.Must(t, mount(root))
	t.Cleanup(func() {
		left, err := testbed.MountsUnder(root) // complete layers outlive remorad
		testbed.Must(t, err)
		for i := len(left) - 1; i >= 0; i-- {
			testbed.Unmount(t, left[i])
		}
		testbed.Unmount(t, root) // loop devices let go of their files in the background
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
		s := testbed.New(t, testbed.Options{Root: root, LogLevel: "info", Config: config})
		_, lazy := testbed.Pushed(t, s, testbed.Python)
		_, err := s.Snapctl(t.Context(), "pull", lazy)
		testbed.Must(t, err)
		lazyLayers(t, s, 3, backend)
		testbed.RunImage(t, s, lazy, "one", "remora", testbed.Python)
		_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, "sleeper", "sleep", "1000")
		testbed.Must(t, err)
		testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
		lazyLayers(t, s, 3, backend)
		testbed.RunImage(t, s, lazy, "two", "remora", testbed.Python)
		_, err = s.Ctr(t.Context(), "tasks", "rm", "-f", "sleeper")
		testbed.Must(t, err)
		_, err = s.Ctr(t.Context(), "containers", "rm", "sleeper")
		testbed.Must(t, err)
		_, err = s.Snapctl(t.Context(), "fetch", "--cache-only", lazy)
		testbed.Must(t, err)
		testbed.RunImage(t, s, lazy, "three", "remora", testbed.Python)
		sameTree(t, s, lazy, s.Ref("python:src"), func(string) bool { return false })
	})
}
