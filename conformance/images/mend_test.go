package images_test

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// entries is a layer of such entries. All have content.
func entries(all ...tar.Header) func(*tar.Writer) error {
	return func(tw *tar.Writer) error {
		for i := range all {
			h, body := all[i], ""
			if h.Typeflag == tar.TypeReg {
				body = h.Name
				h.Size = int64(len(body))
			}
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
			if _, err := tw.Write([]byte(body)); err != nil {
				return err
			}
		}
		return nil
	}
}

func then(parts ...func(*tar.Writer) error) func(*tar.Writer) error {
	return func(tw *tar.Writer) error {
		for _, part := range parts {
			if err := part(tw); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestRefusedLate: a layer that was claimed by its first bytes, and of which no image can be made for what comes later, shows what
// containerd unpacks of it: between others, with whiteouts, and with directories that only the layers below have, whichever client has
// pulled it. It does so after remorad was killed, too, and leaves nothing behind.
func TestRefusedLate(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, testbed.WriteTars(layout, "src",
		entries(tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 7},
			tar.Header{Name: "d/gone", Typeflag: tar.TypeReg, Mode: 0o600},
			tar.Header{Name: "d/kept", Typeflag: tar.TypeReg, Mode: 0o4755}, tar.Header{Name: "hidden/", Typeflag: tar.TypeDir, Mode: 0o755},
			tar.Header{Name: "hidden/below", Typeflag: tar.TypeReg, Mode: 0o644}),
		then(randomLayer(3, 4<<20), entries(
			tar.Header{Name: "d/new", Typeflag: tar.TypeReg, Mode: 0o640, Gid: 9, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
			tar.Header{Name: "d/same", Typeflag: tar.TypeLink, Linkname: "d/new"}, tar.Header{Name: "d/.wh.gone", Typeflag: tar.TypeReg},
			tar.Header{Name: "hidden/", Typeflag: tar.TypeDir, Mode: 0o700}, tar.Header{Name: "hidden/.wh..wh..opq", Typeflag: tar.TypeReg},
			tar.Header{Name: "hidden/link", Typeflag: tar.TypeSymlink, Linkname: "../d"},
			tar.Header{Name: "odd", Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 5000, Devminor: 1})),
		entries(tar.Header{Name: "d/top", Typeflag: tar.TypeReg, Mode: 0o644})))
	testbed.Must(t, s.Push(t.Context(), layout, "src", "odd:1"))
	ordinaryTree(t, s, s.Ref("odd:1"))
	p := newFaultyProxyOn(t, s, "127.0.1.1", false) // who names no port is placed by the host's name
	for _, name := range sortedKeys(matrixClients) {
		t.Run(name, func(t *testing.T) {
			repo := strings.ReplaceAll(name, " ", "-") + ":1" // another one, since it is known for a while that the layer is refused
			testbed.Must(t, s.Push(t.Context(), layout, "src", repo))
			ref := p.Listener.Addr().String() + "/" + repo
			pull := func() { testbed.Must(t, matrixClients[name](t.Context(), s, ref, "")) }
			ours := name != "snapctl"
			if !ours { // it waits until that is known, and has containerd unpack the layer
				pull()
			} else {
				hold := make(chan struct{})
				held := holding(hold)
				p.fault.Store(&held)
				pullClaimed(t, s, ref, 3, pull)
				close(hold)
			}
			same := func(t *testing.T) {
				sameTree(t, s, ref, s.Ref("odd:1"), func(path string) bool { return path == "d" })
				if state := layerState(t, s, 1); (state == "mounted unpacked") != ours {
					t.Errorf("the layer is %q", state)
				}
			}
			t.Run("now", same)
			testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
			t.Run("after a kill", same)
			removeAll(t, s, ref)
			waitNoLayers(t, s)
			p.fault.Store(nil)
		})
	}
}

// layerState is what status says of an image's layer, counted from the lowest; "" if remorad does not supply it.
func layerState(t *testing.T, s *testbed.Stack, i int) string {
	t.Helper()
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	if len(st.Layers) <= i {
		return ""
	}
	return strings.TrimSpace(st.Layers[i].State + " " + st.Layers[i].Backend)
}

// TestBlobGone: a container that runs reads what its repository has no longer from another image's, once containerd has that.
func TestBlobGone(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	redis := testbed.Programs[1]
	layout, err := redis.LazyLayout(t.Context())
	testbed.Must(t, err)
	for _, name := range []string{"first:1", "second:1"} {
		testbed.Must(t, s.Push(t.Context(), layout, "lazy", name))
	}
	first, second := s.Ref("first:1"), s.Ref("second:1")
	_, err = s.Snapctl(t.Context(), "pull", first)
	testbed.Must(t, err)
	startSleeper(t, s, first)
	deleteBlobs(t, s, layout, "lazy", "first")
	readAll := func(id string) error {
		_, err := s.Ctr(t.Context(), "tasks", "exec", "--exec-id", id, "sleeper", "sh", "-c", "find /usr/bin -type f -exec cat {} + >/dev/null")
		return err
	}
	if err := readAll("first"); err == nil {
		t.Error("what nobody has was read")
	}
	_, err = s.Ctr(t.Context(), "images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", second)
	testbed.Must(t, err)
	try, last := 0, error(nil)
	defer func() {
		if t.Failed() {
			t.Log("the last read:", last)
		}
	}()
	testbed.WaitFor(t, "the container to read on", func() bool {
		try++
		last = readAll(fmt.Sprint("again-", try))
		return last == nil
	})
	out, err := s.Snapctl(t.Context(), "repair", first)
	testbed.Must(t, err)
	if !strings.Contains(out, "layers whole, 0 broken") {
		t.Error(out)
	}
	testbed.Must(t, s.StopRegistry())
	testbed.RunImage(t, s, first, "offline", "remora", redis)
}

// startSleeper runs a container of an image, and returns when it has read all that it needs to sleep on: it outlives the loss of the rest.
func startSleeper(t *testing.T, s *testbed.Stack, ref string) {
	t.Helper()
	_, err := s.Ctr(t.Context(), "run", "-d", "--snapshotter", "remora", ref, "sleeper",
		"sh", "-c", "sleep 0 && touch /sleeps && exec sleep 1000")
	testbed.Must(t, err)
	try := 0
	testbed.WaitFor(t, "the container to sleep", func() bool {
		try++
		_, err := s.Ctr(t.Context(), "tasks", "exec", "--exec-id", fmt.Sprint("sleeps-", try), "sleeper", "sh", "-c", "test -e /sleeps")
		return err == nil
	})
}

// deleteBlobs deletes the layers of an image from a repository.
func deleteBlobs(t *testing.T, s *testbed.Stack, layout, tag, repo string) {
	t.Helper()
	m, err := testbed.ManifestOf(layout, tag)
	testbed.Must(t, err)
	for _, l := range m.Layers {
		at := "http://" + s.Addr + "/v2/" + repo + "/blobs/" + l.Digest.String()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, at, nil)
		testbed.Must(t, err)
		resp, err := http.DefaultClient.Do(req)
		testbed.Must(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("delete blob: %s", resp.Status)
		}
	}
}

// TestReleased: an image whose layer was claimed, and then deleted from the only registry that had it, is removed from containerd by all
// its names, once that has been so for a while; a pull brings it back as soon as it can be had. A pinned image stays.
func TestReleased(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	p := newFaultyProxy(t, s)
	hold := make(chan struct{})
	held := holding(hold)
	p.fault.Store(&held)
	dir, repos := t.TempDir(), []string{"lost", "pinned"}
	refs := map[string]string{}
	pull := func(ref string) {
		t.Helper()
		_, err := s.Ctr(t.Context(), "images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", ref)
		testbed.Must(t, err)
	}
	for i, repo := range repos {
		layout := filepath.Join(dir, repo)
		testbed.Must(t, testbed.WriteTars(layout, "src", randomLayer(uint64(30+i), 4<<20)))
		testbed.Must(t, s.Push(t.Context(), layout, "src", repo+":1"))
		refs[repo] = p.Listener.Addr().String() + "/" + repo + ":1"
		pullClaimed(t, s, refs[repo], i+1, func() { pull(refs[repo]) })
	}
	_, err := s.Ctr(t.Context(), "images", "label", refs["pinned"], "io.cri-containerd.pinned=pinned")
	testbed.Must(t, err)
	_, err = s.Ctr(t.Context(), "images", "tag", refs["lost"], "another.test/name:1")
	testbed.Must(t, err)
	for _, repo := range repos {
		deleteBlobs(t, s, filepath.Join(dir, repo), "src", repo)
	}
	p.CloseClientConnections()
	redis := testbed.Programs[1]
	layout, err := redis.LazyLayout(t.Context())
	testbed.Must(t, err)
	testbed.Must(t, s.Push(t.Context(), layout, "lazy", "mounted:1"))
	pull(s.Ref("mounted:1"))
	startSleeper(t, s, s.Ref("mounted:1"))
	deleteBlobs(t, s, layout, "lazy", "mounted")
	if _, err := s.Ctr(t.Context(), "tasks", "exec", "--exec-id", "read", "sleeper", "sh", "-c",
		"find /usr/bin -type f -exec cat {} + >/dev/null"); err == nil {
		t.Error("what nobody has was read")
	}
	_, err = s.Ctr(t.Context(), "tasks", "kill", "-s", "KILL", "sleeper")
	testbed.Must(t, err)
	testbed.WaitFor(t, "the container to end", func() bool {
		_, err := s.Ctr(t.Context(), "containers", "rm", "sleeper")
		return err == nil
	})
	events := startEvents(t, s)
	try := 0
	start := func(repo string) error { // it fails, as a kubelet tries it again and again
		try++
		_, err := s.Ctr(t.Context(), "run", "--rm", "--snapshotter", "remora", refs[repo], fmt.Sprint("c", try), "true")
		return err
	}
	testbed.WaitFor(t, "the image to be removed", func() bool {
		time.Sleep(time.Second) // as a kubelet waits
		for _, repo := range repos {
			if start(repo) == nil {
				t.Fatal("it runs")
			}
		}
		names, err := s.Ctr(t.Context(), "images", "ls", "-q")
		testbed.Must(t, err)
		return !strings.Contains(names, "lost") && !strings.Contains(names, "another") && !strings.Contains(names, "mounted")
	})
	names, err := s.Ctr(t.Context(), "images", "ls", "-q")
	testbed.Must(t, err)
	if !strings.Contains(names, "pinned") {
		t.Errorf("a pinned image was removed: %s", names)
	}
	if out, err := s.Snapctl(t.Context(), "repair", "--release", refs["pinned"]); err == nil || !strings.Contains(err.Error(), "pinned") {
		t.Errorf("%s, %v", out, err)
	}
	for event, name := range map[string]string{"released": refs["lost"], "released ": "another.test/name:1", "broken": refs["pinned"]} {
		testbed.WaitFor(t, "ctr events to say "+event+" of "+name, func() bool { return events(strings.TrimSpace(event), name) })
	}
	close(hold)
	testbed.Must(t, s.Push(t.Context(), filepath.Join(dir, "lost"), "src", "lost:1"))
	pull(refs["lost"])
	sameTree(t, s, refs["lost"], s.Ref("lost:1"), func(string) bool { return false })
}

// startEvents has ctr print our events. It returns whether one of a kind was printed of an image, with its layer and a reason.
func startEvents(t *testing.T, s *testbed.Stack) func(kind, name string) bool {
	t.Helper()
	c, err := s.CtrCommand(t.Context(), "events", `topic~="^/remora/image/"`)
	testbed.Must(t, err)
	printed := filepath.Join(t.TempDir(), "events")
	f, err := os.Create(printed)
	testbed.Must(t, err)
	c.Stdout = f
	testbed.Must(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill() // it may have ended with containerd
		_ = c.Wait()
		f.Close()
	})
	return func(kind, name string) bool {
		t.Helper()
		p, err := os.ReadFile(printed)
		testbed.Must(t, err)
		for line := range strings.Lines(string(p)) {
			head, body, _ := strings.Cut(line, "{")
			if !strings.HasSuffix(body, "}\n") { // it is being written
				continue
			}
			var image struct {
				Name   string
				Labels map[string]string
			}
			testbed.Must(t, json.Unmarshal([]byte("{"+body), &image))
			if strings.HasSuffix(head, " "+s.Namespace+" /remora/image/"+kind+" ") && image.Name == name {
				return image.Labels["remora.layer"] != "" && image.Labels["remora.reason"] != ""
			}
		}
		return false
	}
}
