package images_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// wantNothingLeft insists that removed images leave neither snapshots nor mounts, files or
// descriptors of layers.
func wantNothingLeft(t *testing.T, s *testbed.Stack, fds int) {
	t.Helper()
	var left []string
	for range 600 {
		left = nil
		st, err := s.Status(t.Context())
		testbed.Must(t, err)
		if len(st.Layers) > 0 || st.Cache.Bytes != 0 {
			left = append(left, fmt.Sprintf("%d layers, %d bytes of cache", len(st.Layers), st.Cache.Bytes))
		}
		mounts, err := testbed.MountsUnder(s.Root)
		testbed.Must(t, err)
		for _, m := range mounts {
			if base := filepath.Base(m); base != "fuse" && base != "trees" { // those stay for what comes next
				left = append(left, "mount "+m)
			}
		}
		for _, dir := range []string{"snapshots", "cache", "cache/.imports"} {
			entries, err := os.ReadDir(filepath.Join(s.Root, dir))
			if !errors.Is(err, os.ErrNotExist) {
				testbed.Must(t, err)
			}
			for _, e := range entries {
				if e.Name() != ".imports" { // it stays for what comes next
					left = append(left, filepath.Join(dir, e.Name()))
				}
			}
		}
		if now := openFiles(t, s); len(now) > fds {
			left = append(left, fmt.Sprintf("%d descriptors, %d before: %v", len(now), fds, now))
		}
		if left == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("left: %v", left)
}

// openFiles lists remorad's descriptors, and its holder's, but for sockets and pipes, which idle
// connections keep for reuse, and what exists once for all layers.
func openFiles(t *testing.T, s *testbed.Stack) (open []string) {
	t.Helper()
	return append(openFilesOf(t, s.RemoradPID()), openFilesOf(t, s.HolderPID())...)
}

func openFilesOf(t *testing.T, pid int) (open []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	testbed.Must(t, err)
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, "pipe:") ||
			to == "anon_inode:[fanotify]" || to == "/dev/fuse" || strings.HasPrefix(to, "/memfd:remora-") {
			continue
		}
		open = append(open, to)
	}
	return open
}

// ourGoroutines counts remorad's goroutines that are in our packages: those of idle connections
// are not.
func ourGoroutines(t *testing.T, pprof string) int {
	t.Helper()
	resp, err := http.Get("http://" + pprof + "/debug/pprof/goroutine?debug=2")
	testbed.Must(t, err)
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	testbed.Must(t, err)
	n := 0
	for g := range strings.SplitSeq(string(p), "\n\n") {
		if strings.Contains(g, "watchReaders") || strings.Contains(g, "fusedev.(*loop).run") {
			continue // once for all layers
		}
		for _, room := range []string{"cache", "snapshotter", "remote", "blockdev", "fs"} {
			if strings.Contains(g, "github.com/remora-storage/remora/"+room) {
				n++
				break
			}
		}
	}
	return n
}

func removeAll(t *testing.T, s *testbed.Stack, refs ...string) {
	t.Helper()
	_, err := s.Ctr(t.Context(), append([]string{"images", "rm", "--sync"}, refs...)...)
	testbed.Must(t, err)
}

// TestLifecycle takes an image through what people do with it: run, write, commit, push to the
// same and to another repository, export, before and after it was fetched whole, and remove.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	pprof, err := testbed.FreeAddr()
	testbed.Must(t, err)
	s := testbed.New(t, testbed.Options{Config: "[pprof]\naddress = \"" + pprof + "\"\n"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	goroutines := ourGoroutines(t, pprof)
	fds := len(openFiles(t, s))
	_, err = s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	testbed.RunImage(t, s, lazy, "one", "remora", testbed.Python)

	ctr := func(args ...string) string {
		t.Helper()
		out, err := s.Ctr(t.Context(), args...)
		testbed.Must(t, err)
		return out
	}
	// Write in a container, stop it, commit what it wrote as a layer's diff.
	ctr("run", "--snapshotter", "remora", lazy, "writer", "sh", "-c", "echo written > /written; rm /etc/debian_version; touch /etc/passwd")
	if diff := ctr("snapshots", "--snapshotter", "remora", "diff", "writer"); len(diff) == 0 {
		t.Error("a changed container has no diff")
	}
	ctr("snapshots", "--snapshotter", "remora", "usage", "writer")
	ctr("containers", "rm", "writer")

	push := func(to string) error {
		_, err := s.Ctr(t.Context(), "images", "push", "--local", "--hosts-dir", s.HostsDir, to, lazy)
		return err
	}
	testbed.Must(t, push(s.Ref("python:again")))
	if err := push(s.Ref("elsewhere/python:one")); err != nil {
		t.Logf("another repository needs the blobs or a mount: %v", err)
	}
	tarball := filepath.Join(t.TempDir(), "image.tar")
	for _, how := range [][]string{{"--local"}, nil} { // by ctr, by containerd
		if _, err := s.Ctr(t.Context(), append(append([]string{"images", "export"}, how...), tarball, lazy)...); err == nil {
			t.Errorf("an image without its blobs was exported %v", how)
		}
	}
	out, err := s.Snapctl(t.Context(), "fetch", lazy)
	testbed.Must(t, err)
	t.Log(out)
	ctr("images", "export", "--local", tarball, lazy)
	testbed.Must(t, push(s.Ref("elsewhere/python:two")))
	out, err = testbed.Output(t.Context(), nil, "skopeo", "inspect", "--tls-verify=false", "docker://"+s.Ref("elsewhere/python:two"))
	testbed.Must(t, err)
	if !strings.Contains(out, "sha256:") {
		t.Errorf("pushed image: %s", out)
	}
	testbed.RunImage(t, s, lazy, "two", "remora", testbed.Python)
	lazyLayers(t, s, 3, "direct")
	testbed.RunImage(t, s, lazy, "three", "remora", testbed.Python)
	// Collection keeps what the image refers to.
	ctr("images", "tag", lazy, "another:name")
	ctr("images", "rm", "--sync", "another:name")
	ctr("images", "export", "--local", tarball, lazy)

	removeAll(t, s, lazy)
	wantNothingLeft(t, s, fds)
	testbed.WaitFor(t, "as few goroutines as before", func() bool { return ourGoroutines(t, pprof) <= goroutines })
}

// TestTwoNamespaces: one has the base layer by the ordinary path, the other lazily.
func TestTwoNamespaces(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	lazy := unlisted(t, s, testbed.Python, "python:lazy")
	// ctr images pull --local downloads first and unpacks then, without the handshake.
	_, err := s.Ctr(t.Context(), "-n", "first", "images", "pull", "--local", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", lazy)
	testbed.Must(t, err)
	lazyLayers(t, s, 0, "")
	_, err = s.Snapctl(t.Context(), "--namespace", "second", "pull", lazy)
	testbed.Must(t, err)
	lazyLayers(t, s, 3, testbed.BestBackend)
	for _, ns := range []string{"first", "second"} {
		out, err := s.Ctr(t.Context(), append([]string{"-n", ns, "run", "--rm", "--snapshotter", "remora", lazy, "c"}, testbed.Python.Args...)...)
		testbed.Must(t, err)
		if !strings.Contains(out, testbed.Python.Want) {
			t.Errorf("namespace %s: %q", ns, out)
		}
	}
	// A third one shares what the cache has for the second, and has snapshots of its own.
	_, err = s.Snapctl(t.Context(), "--namespace", "third", "pull", lazy)
	testbed.Must(t, err)
	lazyLayers(t, s, 6, testbed.BestBackend)
	_, err = s.Ctr(t.Context(), "-n", "second", "images", "rm", "--sync", lazy)
	testbed.Must(t, err)
	lazyLayers(t, s, 3, testbed.BestBackend)
	_, err = s.Ctr(t.Context(), append([]string{"-n", "third", "run", "--rm", "--snapshotter", "remora", lazy, "c"},
		testbed.Python.Args...)...)
	testbed.Must(t, err)
}

// TestPullsByOthers: clients that are not snapctl are lazy too.
func TestPullsByOthers(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	for _, c := range []struct {
		name string
		pull func() error
	}{
		{"a client without labels, as nerdctl", func() error { return outsideClient(t.Context(), s, lazy, "", false) }},
		{"ctr images pull, transfer service", func() error {
			_, err := s.Ctr(t.Context(), "images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", lazy)
			return err
		}},
		{"a client with AppendInfoHandlerWrapper", func() error { return outsideClient(t.Context(), s, lazy, "", true) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			testbed.Must(t, c.pull())
			lazyLayers(t, s, 3, testbed.BestBackend)
			testbed.RunImage(t, s, lazy, "c", "remora", testbed.Python)
			st, err := s.Status(t.Context())
			testbed.Must(t, err)
			if len(st.Layers) == 0 {
				return
			}
			if l := st.Layers[0]; l.FetchedBytes == 0 || l.PresentBytes == l.TotalBytes {
				t.Errorf("base layer fetched %d, present %d of %d", l.FetchedBytes, l.PresentBytes, l.TotalBytes)
			}
			removeAll(t, s, lazy)
		})
	}
}

// TestManyLayers: 120 lazy layers mount and work.
func TestManyLayers(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	const n = 120
	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, writeManyLayers(layout, n))
	_, err := s.Snapctl(t.Context(), "convert", "oci:"+layout+":src", s.Ref("many:lazy"))
	testbed.Must(t, err)
	_, err = s.Snapctl(t.Context(), "pull", s.Ref("many:lazy"))
	testbed.Must(t, err)
	lazyLayers(t, s, n, testbed.BestBackend)
	root := testbed.MountImage(t, s, s.Ref("many:lazy"), "remora")
	for i := range n {
		got, err := os.ReadFile(filepath.Join(root, "layers", fmt.Sprint(i)))
		if err != nil || string(got) != fmt.Sprint("layer ", i) {
			t.Fatalf("layer %d: %q, %v", i, got, err)
		}
	}
	testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
	lazyLayers(t, s, n, testbed.BestBackend)
}

// TestRestart: what was pulled works after any end of remorad, and a container that runs meanwhile
// does not notice.
func TestRestart(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run("between pull and run, "+sig.String(), func(t *testing.T) {
			testbed.Must(t, s.RestartRemorad(sig))
			lazyLayers(t, s, 3, testbed.BestBackend)
			testbed.RunImage(t, s, lazy, "after", "remora", testbed.Python)
		})
		t.Run("with a container running, "+sig.String(), func(t *testing.T) {
			_, err := s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, "sleeper", "sleep", "1000")
			testbed.Must(t, err)
			testbed.Must(t, s.RestartRemorad(sig))
			st, err := s.Status(t.Context())
			testbed.Must(t, err)
			if len(st.Broken) != 0 {
				t.Errorf("broken: %+v, want nothing: the holder is alive", st.Broken)
			}
			testbed.RunImage(t, s, lazy, "other", "remora", testbed.Python) // new containers work
			// The running one reads on, what it had not read yet too.
			out, err := s.Ctr(t.Context(), "tasks", "exec", "--exec-id", "x", "sleeper", "sh", "-c", "cat /usr/share/common-licenses/GPL-3 | md5sum")
			testbed.Must(t, err)
			want, err := s.Ctr(t.Context(), "run", "--rm", "--snapshotter", "remora", lazy, "fresh", "sh", "-c",
				"cat /usr/share/common-licenses/GPL-3 | md5sum")
			testbed.Must(t, err)
			if out != want {
				t.Errorf("got %q, want %q: wrong bytes", out, want)
			}
			_, err = s.Ctr(t.Context(), "tasks", "rm", "-f", "sleeper")
			testbed.Must(t, err)
			// A stopped container starts after the restart: only Mounts is called for it.
			_, err = s.Ctr(t.Context(), "tasks", "start", "-d", "sleeper")
			testbed.Must(t, err)
			_, err = s.Ctr(t.Context(), "tasks", "exec", "--exec-id", "y", "sleeper", "python3", "-c", "import json")
			testbed.Must(t, err)
			_, err = s.Ctr(t.Context(), "tasks", "rm", "-f", "sleeper")
			testbed.Must(t, err)
			_, err = s.Ctr(t.Context(), "containers", "rm", "sleeper")
			testbed.Must(t, err)
		})
	}
	t.Run("without the registry", func(t *testing.T) {
		_, err := s.Snapctl(t.Context(), "fetch", "--cache-only", lazy)
		testbed.Must(t, err)
		testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
		testbed.Must(t, s.StopRegistry())
		testbed.Must(t, s.StartRemorad())
		lazyLayers(t, s, 3, "direct")
		testbed.RunImage(t, s, lazy, "offline", "remora", testbed.Python)
		st, err := s.Status(t.Context())
		testbed.Must(t, err)
		for _, l := range st.Layers {
			if l.FetchedBytes != 0 || !l.Verified {
				t.Errorf("layer %s: fetched %d after a restart, verified %v", l.Digest, l.FetchedBytes, l.Verified)
			}
		}
	})
}

// TestEmptiedRoot: a root that was deleted under the mounts of an earlier life is a clean start, and the images that containerd still
// knows run and can be pulled again, by whichever client, without anything being removed.
func TestEmptiedRoot(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	_, err = s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", lazy, "sleeper", "sleep", "1000")
	testbed.Must(t, err)
	testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
	for _, dir := range []string{"metadata.db", "cache", "logins.json", "lock"} {
		testbed.Must(t, os.RemoveAll(filepath.Join(s.Root, dir)))
	}
	testbed.Must(t, s.StartRemorad())
	_, err = s.Ctr(t.Context(), "tasks", "rm", "-f", "sleeper")
	testbed.Must(t, err)
	testbed.RunImage(t, s, lazy, "again", "remora", testbed.Python)
	for _, client := range sortedKeys(clients) {
		testbed.Must(t, clients[client](t.Context(), s, lazy, ""))
	}
	_, err = s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	testbed.RunImage(t, s, lazy, "pulled-again", "remora", testbed.Python)
	_, err = s.Snapctl(t.Context(), "--namespace", "new", "pull", lazy)
	testbed.Must(t, err)
	_, err = s.Ctr(t.Context(), append([]string{"-n", "new", "run", "--rm", "--snapshotter", "remora", lazy, "c"}, testbed.Python.Args...)...)
	testbed.Must(t, err)
}

// TestQuarantine: an image that claims another's diffID for other bytes is found out.
func TestQuarantine(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{})
	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, writeManyLayers(layout, 1))
	_, err := s.Snapctl(t.Context(), "convert", "oci:"+layout+":src", "oci:"+layout+":lazy")
	testbed.Must(t, err)
	testbed.Must(t, liar(layout, "lazy", "liar"))
	testbed.Must(t, s.Push(t.Context(), layout, "liar", "liar:1"))
	_, err = s.Snapctl(t.Context(), "pull", s.Ref("liar:1"))
	testbed.Must(t, err)
	if _, err := s.Snapctl(t.Context(), "fetch", "--cache-only", s.Ref("liar:1")); err == nil || !strings.Contains(err.Error(), "diffID") {
		t.Errorf("fetch of wrong content: %v", err)
	}
	var layers []testbed.LayerStatus
	testbed.WaitFor(t, "the layer to be quarantined", func() bool {
		st, err := s.Status(t.Context())
		testbed.Must(t, err)
		layers = st.Layers
		return len(layers) == 1 && layers[0].State == "quarantined"
	})
	if !strings.Contains(layers[0].Reason, "liar:1") {
		t.Errorf("the image that brought it is not named: %s", layers[0].Reason)
	}
	_, err = s.Ctr(t.Context(), "run", "--rm", "--snapshotter", "remora", s.Ref("liar:1"), "c", "true")
	if err == nil || !strings.Contains(err.Error(), "quarantined") {
		t.Errorf("run: %v", err)
	}
	testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
	if _, err := s.Ctr(t.Context(), "run", "--rm", "--snapshotter", "remora", s.Ref("liar:1"), "d", "true"); err == nil {
		t.Error("quarantine was forgotten by a restart")
	}
}
