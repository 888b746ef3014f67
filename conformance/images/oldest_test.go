package images_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestOldestContainerd is a sample of what matters, on the oldest containerd that Remora promises to work with: lazy pulls by ctr
// and by snapctl, an import, layers that containerd unpacks itself, a container that outlives remorad, and removal. make soak runs the
// other tests on it too.
func TestOldestContainerd(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Containerd: testbed.OldestContainerd})
	s.Configure(fmt.Sprintf("[import.for.%q]\nmode = \"ordinary\"\n", s.Ref("ordinary")))
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
	layout, err := testbed.Python.LazyLayout(t.Context())
	testbed.Must(t, err)
	testbed.Must(t, s.Push(t.Context(), layout, "lazy", "python:lazy"))
	layout, small := smallImage(t)
	lazy, plain, ordinary := s.Ref("python:lazy"), s.Ref("small:src"), s.Ref("ordinary/small:src")
	for _, name := range []string{"small:src", "ordinary/small:src"} {
		testbed.Must(t, s.Push(t.Context(), layout, "src", name))
	}
	fds := len(openFiles(t, s))

	for _, client := range []string{"ctr", "snapctl"} {
		t.Run(client, func(t *testing.T) {
			if client == "snapctl" {
				_, err := s.Snapctl(t.Context(), "pull", lazy)
				testbed.Must(t, err)
			} else {
				testbed.Must(t, clients[client](t.Context(), s, lazy, ""))
			}
			lazyLayers(t, s, 3, testbed.BestBackend)
			testbed.RunImage(t, s, lazy, "lazily", "remora", testbed.Python)
			st, err := s.Status(t.Context())
			testbed.Must(t, err)
			if l := st.Layers[0]; l.FetchedBytes == 0 || l.PresentBytes == l.TotalBytes {
				t.Errorf("base layer fetched %d, present %d of %d", l.FetchedBytes, l.PresentBytes, l.TotalBytes)
			}
			if client == "snapctl" {
				outlivesRemorad(t, s, lazy)
				refusesUserNamespace(t, s, lazy)
			}
			removeAll(t, s, lazy)
			waitNoLayers(t, s)
		})
	}
	t.Run("import", func(t *testing.T) {
		testbed.Must(t, clients["ctr"](t.Context(), s, plain, ""))
		onlyFormat(t, s, plain, "import")
		testbed.RunImage(t, s, plain, "imported", "remora", small)
		removeAll(t, s, plain)
	})
	t.Run("unpacked by containerd", func(t *testing.T) {
		testbed.Must(t, clients["ctr"](t.Context(), s, ordinary, ""))
		lazyLayers(t, s, 0, "")
		testbed.RunImage(t, s, ordinary, "unpacked", "remora", small)
		removeAll(t, s, ordinary)
	})
	wantNothingLeft(t, s, fds)
}

// outlivesRemorad kills remorad under a container, whose shim must be the stack's containerd's.
func outlivesRemorad(t *testing.T, s *testbed.Stack, ref string) {
	t.Helper()
	ctr := func(args ...string) string {
		t.Helper()
		out, err := s.Ctr(t.Context(), args...)
		testbed.Must(t, err)
		return out
	}
	const sum = "cat /usr/share/common-licenses/GPL-3 | md5sum"
	ctr("run", "-d", "--snapshotter", "remora", ref, "sleeper", "sleep", "1000")
	fields := strings.Fields(ctr("tasks", "ls")) // and a line with the columns' names
	pid := fields[len(fields)-2]
	var parent string
	status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	testbed.Must(t, err)
	for line := range strings.Lines(string(status)) {
		if p, ok := strings.CutPrefix(line, "PPid:"); ok {
			parent = strings.TrimSpace(p)
		}
	}
	shim, err := os.Readlink(filepath.Join("/proc", parent, "exe"))
	testbed.Must(t, err)
	if !strings.HasSuffix(shim, "/containerd-"+testbed.OldestContainerd+"/containerd-shim-runc-v2") {
		t.Errorf("the container's shim is %s", shim)
	}
	if v := ctr("version"); strings.Count(v, "Version:  "+testbed.OldestContainerd+".") != 2 {
		t.Errorf("client and server are to be %s:\n%s", testbed.OldestContainerd, v)
	}
	testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
	got := ctr("tasks", "exec", "--exec-id", "x", "sleeper", "sh", "-c", sum)
	if want := ctr("run", "--rm", "--snapshotter", "remora", ref, "fresh", "sh", "-c", sum); got != want {
		t.Errorf("got %q, want %q: wrong bytes", got, want)
	}
	ctr("tasks", "rm", "-f", "sleeper")
	ctr("containers", "rm", "sleeper")
}
