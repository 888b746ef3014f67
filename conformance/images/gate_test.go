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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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

// claimedDirMode is that of the directory d of a claimedImage.
const claimedDirMode = 0o711

// A claimedImage is one that is still on its way.
type claimedImage struct {
	top  string   // snapshot of all of it
	file string   // one that it has
	name string   // for a snapshot on it
	dir  string   // empty, to mount something on
	all  []string // what there is to be seen in it
}

// clientCalls are what clients of containerd do with an image's snapshot by the mounts that they are answered. Each makes an active
// snapshot or a view of a name, and returns the names of the files that it has seen.
var clientCalls = map[string]func(ctx context.Context, c *client.Client, on claimedImage) ([]string, error){
	// Mounts of what Prepare answers.
	"prepare": func(ctx context.Context, c *client.Client, on claimedImage) ([]string, error) {
		mounts, err := c.SnapshotService("remora").Prepare(ctx, on.name, on.top)
		return seenBy(mounts, on.dir, err)
	},
	// What images mount does, and CRI's and Docker's volumes that are images.
	"view": func(ctx context.Context, c *client.Client, on claimedImage) ([]string, error) {
		mounts, err := c.SnapshotService("remora").View(ctx, on.name, on.top)
		return seenBy(mounts, on.dir, err)
	},
	// A container's root.
	"mounts": func(ctx context.Context, c *client.Client, on claimedImage) ([]string, error) {
		if _, err := c.SnapshotService("remora").Prepare(ctx, on.name, on.top); err != nil {
			return nil, err
		}
		mounts, err := c.SnapshotService("remora").Mounts(ctx, on.name)
		return seenBy(mounts, on.dir, err)
	},
	// What CRI and nerdctl fill a volume by that an image declares.
	"volume": func(ctx context.Context, c *client.Client, on claimedImage) (names []string, err error) {
		mounts, err := c.SnapshotService("remora").Prepare(ctx, on.name, on.top)
		if err != nil {
			return nil, err
		}
		err = mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
			names, err = namesIn(root)
			return err
		})
		return names, err
	},
	// A whole image as one layer.
	"diff": func(ctx context.Context, c *client.Client, on claimedImage) ([]string, error) {
		upper, err := c.SnapshotService("remora").View(ctx, on.name, on.top)
		if err != nil {
			return nil, err
		}
		desc, err := c.DiffService().Compare(ctx, nil, upper)
		if err != nil {
			return nil, err
		}
		return namesOf(ctx, c, desc)
	},
	// What commit does, and BuildKit after each step: only what changed is a layer.
	"commit": func(ctx context.Context, c *client.Client, on claimedImage) ([]string, error) {
		sn := c.SnapshotService("remora")
		mounts, err := sn.Prepare(ctx, on.name, on.top)
		if err != nil {
			return nil, err
		}
		if err := mount.WithTempMount(ctx, mounts, func(root string) error {
			return os.Rename(filepath.Join(root, on.file), filepath.Join(root, "renamed"))
		}); err != nil {
			return nil, err
		}
		desc, err := rootfs.CreateDiff(ctx, on.name, sn, c.DiffService())
		if err != nil {
			return nil, err
		}
		return namesOf(ctx, c, desc)
	},
	// A layer that containerd unpacks on those that are claimed.
	"unpack": func(ctx context.Context, c *client.Client, on claimedImage) ([]string, error) {
		ref := map[string]string{snapshots.LabelSnapshotRef: "sha256:" + strings.Repeat("0", 64)}
		return applied(ctx, c, on, snapshots.WithLabels(ref))
	},
	// What the restore of a checkpoint does with the changes that a container had made.
	"restore": func(ctx context.Context, c *client.Client, on claimedImage) ([]string, error) {
		return applied(ctx, c, on)
	},
}

// applied has containerd unpack a file into the image's directory, which only the image says the mode of.
func applied(ctx context.Context, c *client.Client, on claimedImage, opts ...snapshots.Opt) ([]string, error) {
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	if err := errors.Join(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/new", Mode: 0o644}), tw.Close()); err != nil {
		return nil, err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer.Bytes()), Size: int64(layer.Len())}
	if err := content.WriteBlob(ctx, c.ContentStore(), on.name, &layer, desc); err != nil {
		return nil, err
	}
	mounts, err := c.SnapshotService("remora").Prepare(ctx, on.name, on.top, opts...)
	if err != nil {
		return nil, err
	}
	if _, err := c.DiffService().Apply(ctx, desc, mounts); err != nil {
		return nil, err
	}
	if st, err := os.Stat(filepath.Join(upperOf(mounts), "d")); err != nil || st.Mode().Perm() != claimedDirMode {
		return nil, fmt.Errorf("the directory is %v, %w", st, err)
	}
	mounts, err = c.SnapshotService("remora").Mounts(ctx, on.name)
	return seenBy(mounts, on.dir, err)
}

// upperOf returns the upper directory of an overlay.
func upperOf(mounts []mount.Mount) string {
	for _, option := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
			return dir
		}
	}
	return ""
}

// namesOf returns the names in a packed layer of the content store.
func namesOf(ctx context.Context, c *client.Client, desc ocispec.Descriptor) (names []string, err error) {
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
		names = append(names, strings.TrimSuffix(h.Name, "/"))
	}
}

func namesIn(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func seenBy(mounts []mount.Mount, dir string, err error) (names []string, _ error) {
	if err != nil {
		return nil, err
	}
	if err := mount.All(mounts, dir); err != nil {
		return nil, err
	}
	names, err = namesIn(dir)
	return names, errors.Join(err, mount.UnmountAll(dir, 0))
}

// TestClientsWhileImported: clients that take mounts see the whole image, whenever they ask.
func TestClientsWhileImported(t *testing.T) {
	t.Parallel()
	ctx, h := newHeld(t)
	seed := uint64(10)
	for name, call := range clientCalls {
		t.Run(name, func(t *testing.T) {
			hold := h.hold()
			on := h.image(ctx, t, "while-"+name, seed)
			seed += 2
			time.AfterFunc(500*time.Millisecond, func() { close(hold) }) // the call begins before that
			got, err := call(ctx, h.client, on)
			testbed.Must(t, err)
			testbed.Must(t, h.client.SnapshotService("remora").Remove(ctx, on.name))
			want := on.seenBy(name)
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("saw %v, want %v", got, want)
			}
		})
	}
}

// seenBy returns what one of clientCalls sees of all of the image.
func (on *claimedImage) seenBy(call string) []string {
	if call == "commit" {
		return []string{".wh." + on.file, "renamed"} // alone
	}
	return on.all
}

// held is a client of a registry that can send the first bytes of layers alone.
type held struct {
	stack  *testbed.Stack
	proxy  *faultyProxy
	client *client.Client
}

// newHeld starts a stack for such a client. What is made by the context stays until the test ends.
func newHeld(t *testing.T) (context.Context, *held) {
	t.Helper()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	c, err := client.New(s.Socket)
	testbed.Must(t, err)
	t.Cleanup(func() { testbed.Must(t, c.Close()) })
	ctx, release, err := c.WithLease(namespaces.WithNamespace(t.Context(), s.Namespace))
	testbed.Must(t, err)
	t.Cleanup(func() { testbed.Must(t, release(context.WithoutCancel(ctx))) })
	return ctx, &held{s, newFaultyProxy(t, s), c}
}

// hold has the registry send first bytes alone until what it returns is closed.
func (h *held) hold() chan struct{} {
	hold := make(chan struct{})
	fault := holding(hold)
	h.proxy.fault.Store(&fault)
	return hold
}

// image pulls an image of two layers.
func (h *held) image(ctx context.Context, t *testing.T, repo string, seed uint64) claimedImage {
	t.Helper()
	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, testbed.WriteTars(layout, "src", then(randomLayer(seed, 4<<20),
		entries(tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: claimedDirMode})), randomLayer(seed+1, 1<<20)))
	testbed.Must(t, h.stack.Push(ctx, layout, "src", repo+":src"))
	ref := fmt.Sprintf("%s/%s:src", h.proxy.Listener.Addr(), repo)
	testbed.Must(t, outsideClient(ctx, h.stack, ref, "", true))
	image, err := h.client.GetImage(ctx, ref)
	testbed.Must(t, err)
	diffIDs, err := image.RootFS(ctx)
	testbed.Must(t, err)
	file, other := fmt.Sprint("file-", seed), fmt.Sprint("file-", seed+1)
	return claimedImage{identity.ChainID(diffIDs).String(), file, "client-" + repo, t.TempDir(), []string{"d", file, other}}
}

// TestClientsOfWhatNeverComes: clients that take mounts of an image of which a layer never comes fail. On a busy machine a proof may come
// too late: then containerd downloads that layer by itself, and its clients see the whole image.
func TestClientsOfWhatNeverComes(t *testing.T) {
	t.Parallel()
	ctx, h := newHeld(t)
	hold := h.hold()
	seed := uint64(110)
	images := map[string]claimedImage{}
	for name := range clientCalls {
		images[name] = h.image(ctx, t, "never-"+name, seed)
		seed += 2
	}
	h.proxy.fault.Store(&silence)
	h.proxy.every.Store(true)
	h.proxy.CloseClientConnections() // the answers that have begun
	close(hold)
	var calls sync.WaitGroup
	for name, call := range clientCalls {
		on := images[name]
		calls.Go(func() {
			got, err := call(ctx, h.client, on)
			if slices.Sort(got); err == nil && !slices.Equal(got, on.seenBy(name)) {
				t.Errorf("%s of an image that never came: saw %v, and no error", name, got)
			}
			t.Logf("%s: %v, %.200v", name, got, err)
		})
	}
	calls.Wait()
}

// silence lets requests wait for ever.
var silence fault = func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }

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
