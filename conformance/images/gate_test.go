package images_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestMountedWhileImported: a client that mounts an image right after its pull, by what View answers and without a word to
// remorad, gets the whole image, though a large layer below is still on its way: as it is, by a table of contents, and of one
// layer alone, which is a bind mount. If the layer
// never comes, the mount fails.
func TestMountedWhileImported(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	dir := t.TempDir()
	for name, tars := range map[string][]func(*tar.Writer) error{
		"one": {randomLayer(1, 8<<20)}, "three": {randomLayer(2, 8<<20), randomLayer(3, 1<<20), randomLayer(4, 1<<20)},
		"never": {randomLayer(5, 8<<20)},
	} {
		layout := filepath.Join(dir, name)
		testbed.Must(t, testbed.WriteTars(layout, "src", tars...))
		testbed.Must(t, s.Push(t.Context(), layout, "src", name+":src"))
		convert(t, s, "oci:"+layout+":src", s.Ref(name+":lazy"))
	}
	p := newFaultyProxy(t, s)
	pulls := []func(ref string) error{
		func(ref string) error {
			_, err := s.Ctr(t.Context(), "images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", ref)
			return err
		},
		func(ref string) error { return outsideClient(t.Context(), s, ref, "", true) },
	}
	for _, c := range testbed.Covering(t, testbed.Combinations([]string{"one", "three"}, []string{"src", "lazy"})) {
		name, tag := c[0], c[1]
		ordinaryTree(t, s, s.Ref(name+":src"))
		t.Run(name+" "+tag, func(t *testing.T) {
			ref := fmt.Sprintf("%s/%s:%s", p.Listener.Addr(), name, tag)
			hold := make(chan struct{})
			held := holding(hold)
			p.fault.Store(&held)
			testbed.Must(t, pulls[len(tag)%2](ref))
			time.AfterFunc(time.Second, func() { close(hold) }) // the mount below begins before that
			sameTree(t, s, ref, s.Ref(name+":src"), func(string) bool { return false })
			removeAll(t, s, ref)
		})
	}
	hold := make(chan struct{})
	held := holding(hold)
	p.fault.Store(&held)
	ref := p.Listener.Addr().String() + "/never:src"
	pullClaimed(t, s, ref, 1, func() { testbed.Must(t, pulls[0](ref)) })
	p.CloseClientConnections()
	p.Close() // for good
	root := filepath.Join(dir, "root")
	testbed.Must(t, os.Mkdir(root, 0o755))
	if out, err := s.Ctr(t.Context(), "images", "mount", "--snapshotter", "remora", ref, root); err == nil {
		t.Errorf("an image without its layers is mounted: %s", out)
	}
}

// claimed returns how many layers remorad supplies.
func claimed(t *testing.T, s *testbed.Stack) int {
	t.Helper()
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	return len(st.Layers)
}

// pullClaimed pulls an image until remorad supplies so many layers, of all images: on a busy machine a proof may come late, and then
// the host has little credit for a while.
func pullClaimed(t *testing.T, s *testbed.Stack, ref string, layers int, pull func()) {
	t.Helper()
	for try := 0; ; try++ {
		pull()
		n := claimed(t, s)
		if n >= layers {
			return
		}
		if try == 20 {
			t.Fatalf("after %s was pulled, %d layers are claimed, not %d", ref, n, layers)
		}
		removeAll(t, s, ref)
		time.Sleep(time.Second)
	}
}

// clientCalls are what clients of containerd do with an image's snapshot by the mounts that they are answered. Each returns the names of
// the files that it has seen.
var clientCalls = map[string]func(ctx context.Context, c *client.Client, top, dir string) ([]string, error){
	"prepare": func(ctx context.Context, c *client.Client, top, dir string) ([]string, error) {
		mounts, err := c.SnapshotService("remora").Prepare(ctx, "client-prepares", top)
		return seenBy(mounts, dir, err)
	},
	"view": func(ctx context.Context, c *client.Client, top, dir string) ([]string, error) {
		mounts, err := c.SnapshotService("remora").View(ctx, "client-views", top)
		return seenBy(mounts, dir, err)
	},
	"diff": func(ctx context.Context, c *client.Client, top, _ string) (names []string, err error) {
		sn := c.SnapshotService("remora")
		upper, err := sn.View(ctx, "client-diffs", top)
		if err != nil {
			return nil, err
		}
		desc, err := c.DiffService().Compare(ctx, nil, upper)
		if err != nil {
			return nil, err
		}
		blob, err := content.ReadBlob(ctx, c.ContentStore(), desc)
		if err != nil {
			return nil, err
		}
		z, err := gzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			return nil, err
		}
		for tr := tar.NewReader(z); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return names, nil
			}
			if err != nil {
				return nil, err
			}
			names = append(names, h.Name)
		}
	},
}

func seenBy(mounts []mount.Mount, dir string, err error) (names []string, _ error) {
	if err != nil {
		return nil, err
	}
	if err := mount.All(mounts, dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, errors.Join(err, mount.UnmountAll(dir, 0))
}

// TestClientsWhileImported: clients that take mounts see the whole image, whenever they ask.
func TestClientsWhileImported(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	p := newFaultyProxy(t, s)
	c, err := client.New(s.Socket)
	testbed.Must(t, err)
	defer c.Close()
	ctx, release, err := c.WithLease(namespaces.WithNamespace(t.Context(), s.Namespace))
	testbed.Must(t, err)
	defer func() { testbed.Must(t, release(context.WithoutCancel(ctx))) }()
	seed := uint64(10)
	for name, call := range clientCalls {
		t.Run(name, func(t *testing.T) {
			layout, repo := filepath.Join(t.TempDir(), "layout"), "while-"+name
			testbed.Must(t, testbed.WriteTars(layout, "src", randomLayer(seed, 4<<20), randomLayer(seed+1, 1<<20)))
			want := []string{fmt.Sprint("file-", seed), fmt.Sprint("file-", seed+1)}
			seed += 2
			testbed.Must(t, s.Push(ctx, layout, "src", repo+":src"))
			hold := make(chan struct{})
			held := holding(hold)
			p.fault.Store(&held)
			ref := fmt.Sprintf("%s/%s:src", p.Listener.Addr(), repo)
			testbed.Must(t, outsideClient(ctx, s, ref, "", true))
			image, err := c.GetImage(ctx, ref)
			testbed.Must(t, err)
			diffIDs, err := image.RootFS(ctx)
			testbed.Must(t, err)
			time.AfterFunc(500*time.Millisecond, func() { close(hold) }) // the call begins before that
			dir := t.TempDir()
			got, err := call(ctx, c, identity.ChainID(diffIDs).String(), dir)
			testbed.Must(t, err)
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("saw %v, want %v", got, want)
			}
		})
	}
	for _, key := range []string{"client-prepares", "client-views", "client-diffs"} {
		testbed.Must(t, c.SnapshotService("remora").Remove(ctx, key))
	}
}

// holding has answers stop after their first bytes, which show what a layer is, until hold is closed.
func holding(hold chan struct{}) fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		pass.ServeHTTP(&heldAnswer{ResponseWriter: w, r: r, hold: hold}, r)
	}
}

// heldAnswer is an answer whose first bytes come before the rest.
type heldAnswer struct {
	http.ResponseWriter
	r    *http.Request
	hold chan struct{}
	sent int
}

func (h *heldAnswer) Write(p []byte) (n int, err error) {
	if now := min(max(512-h.sent, 0), len(p)); now > 0 {
		if n, err = h.ResponseWriter.Write(p[:now]); err != nil {
			return n, err
		}
		h.sent += n
		h.ResponseWriter.(http.Flusher).Flush()
	}
	if n == len(p) {
		return n, nil
	}
	select {
	case <-h.hold:
	case <-h.r.Context().Done():
	}
	k, err := h.ResponseWriter.Write(p[n:])
	return n + k, err
}
