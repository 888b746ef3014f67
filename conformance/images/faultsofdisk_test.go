package images_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/conformance/testbed"
)

// pulledPython pulls python, as it is by overlayfs and lazily by remora. It returns the SHA-256 sums of those of its files that are
// not small, by path in the image.
func pulledPython(t *testing.T, s *testbed.Stack) (src, lazy string, paths []string, sums map[string]string) {
	t.Helper()
	src, lazy = testbed.Pushed(t, s, testbed.Python)
	testbed.Must(t, s.PullOrdinary(t.Context(), src, "overlayfs"))
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	root := testbed.MountImage(t, s, src, "overlayfs")
	sums = map[string]string{}
	testbed.Must(t, filepath.WalkDir(filepath.Join(root, "usr/lib/python3.11"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if err == nil && len(data) >= 4096 {
			p = strings.TrimPrefix(p, root)
			paths, sums[p] = append(paths, p), digest.FromBytes(data).Encoded()
		}
		return err
	}))
	return src, lazy, paths, sums
}

// TestDetachAndContainers: containers start while somebody detaches all layers, again and again. Each either fails to start, or
// reads what its image has: never zeros where the image is not here yet.
func TestDetachAndContainers(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	_, lazy, paths, sums := pulledPython(t, s)
	done := make(chan struct{})
	var detaching sync.WaitGroup
	detached := 0
	detaching.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := s.Snapctl(t.Context(), "detach", "--all"); err == nil {
				detached++
			}
		}
	})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d files", seed, len(paths))
	r := rand.New(rand.NewPCG(seed, 0))
	started := 0
	for n := range testbed.Rounds(20, 1000) {
		path := paths[r.IntN(len(paths))]
		out, err := s.Ctr(t.Context(), "run", "--rm", "--snapshotter", "remora", lazy, fmt.Sprint("reads-", n), "sha256sum", path)
		if err == nil {
			started++
		}
		if sum, _, ok := strings.Cut(out, " "); ok && err == nil && sum != sums[path] {
			t.Errorf("container %d read %s wrong: %s", n, path, out)
		}
	}
	close(done)
	detaching.Wait()
	t.Logf("%d containers started, detached %d times", started, detached)
	if started == 0 || detached == 0 {
		t.Errorf("%d containers started, and all was detached %d times", started, detached)
	}
}

// TestSyncFailsOnce: the system call by which the cache has the disk take its data fails, in each thread of remorad once. What
// containers read is right then, after a kill, and once all of the image is here.
func TestSyncFailsOnce(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	src, lazy, paths, sums := pulledPython(t, s)
	trace := filepath.Join(t.TempDir(), "trace")
	args := []string{"-f", "-qq", "-o", trace, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1",
		"-p", fmt.Sprint(s.RemoradPID())}
	images, err := filepath.Glob(filepath.Join(s.Root, "cache", "*", "image"))
	testbed.Must(t, err)
	for _, path := range images {
		args = append(args, "-P", path)
	}
	c, err := testbed.Command(t.Context(), "strace", args...)
	testbed.Must(t, err)
	testbed.Must(t, c.Start())
	injected := func() bool {
		p, err := os.ReadFile(trace)
		return err == nil && strings.Contains(string(p), "INJECTED")
	}
	read := func(paths []string) {
		t.Helper()
		root := testbed.MountImage(t, s, lazy, "remora")
		for _, path := range paths {
			data, err := os.ReadFile(filepath.Join(root, path))
			if err != nil || digest.FromBytes(data).Encoded() != sums[path] {
				t.Errorf("%s: %d bytes, %v", path, len(data), err)
			}
		}
	}
	testbed.WaitFor(t, "a sync to fail", func() bool {
		read(paths[:len(paths)/2])
		return injected()
	})
	testbed.Must(t, c.Process.Signal(syscall.SIGINT))
	_ = c.Wait() // it says by what signal it ended
	read(paths[:len(paths)/2])
	if n := countLog(t, s, "disk does not take the cache's data"); n == 0 {
		t.Error("nobody has noticed")
	}
	testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
	read(paths)
	_, err = s.Snapctl(t.Context(), "fetch", "--cache-only", lazy)
	testbed.Must(t, err)
	sameTree(t, s, lazy, src, func(string) bool { return false })
}
