package host_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remora-storage/remora/remote/store"
	"github.com/remora-storage/remora/remote/store/filestore"
	"github.com/remora-storage/remora/volume"
	"github.com/remora-storage/remora/volume/host"
)

// openDir is OpenStore for directories.
func openDir(url string) (store.Store, error) {
	return filestore.Open(strings.TrimPrefix(url, "file:"), filestore.Options{})
}

// newDirStore makes a store with volumes, and returns its URL.
func newDirStore(t *testing.T, dir string, names ...string) string {
	t.Helper()
	s, err := filestore.Make(dir, filestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := volume.Init(t.Context(), s, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if _, _, err := volume.Create(t.Context(), s, name, volume.Spec{Size: size}); err != nil {
			t.Fatal(err)
		}
	}
	return "file:" + dir
}

func openDirs(t *testing.T, root string) *host.Host {
	t.Helper()
	h, err := host.Open(host.Options{Root: root, Journal: 16 << 20, OpenStore: openDir, TTL: 4 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func attachAt(ctx context.Context, h *host.Host, url, name string) (*host.Device, *volume.Head, error) {
	s, err := h.Store(ctx, url)
	if err != nil {
		return nil, nil, err
	}
	head, err := volume.Lookup(ctx, s, name)
	if err != nil {
		return nil, nil, err
	}
	d, err := h.Attach(ctx, url, head, host.AttachOptions{Progress: func(string) {}})
	return d, head, err
}

func mustAttachAt(t *testing.T, h *host.Host, url, name string) (*host.Device, *volume.Head) {
	t.Helper()
	d, head, err := attachAt(t.Context(), h, url, name)
	if err != nil {
		t.Fatal(err)
	}
	return d, head
}

func mustWrite(t *testing.T, d *host.Device, off int64) {
	t.Helper()
	if err := d.WriteAt(t.Context(), make([]byte, volume.Block), off); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func mustDetach(t *testing.T, h *host.Host, heads ...*volume.Head) {
	t.Helper()
	for _, head := range heads {
		if err := h.Detach(t.Context(), head.ID); err != nil {
			t.Error(err)
		}
	}
}

// TestTwoURLs: volumes of one store that are attached by URLs that are spelled in two ways share the node's lease, in another life
// of the node, too, and are the same by each name.
func TestTwoURLs(t *testing.T) {
	dir := t.TempDir()
	url := newDirStore(t, filepath.Join(dir, "store"), "one", "two")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "store"), link); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	h := openDirs(t, root)
	one, first := mustAttachAt(t, h, url, "one")
	two, second := mustAttachAt(t, h, "file:"+link, "two")
	again, _ := mustAttachAt(t, h, "file:"+link, "one")
	for i := range int64(3) {
		mustWrite(t, one, i*volume.Block)
		mustWrite(t, two, i*volume.Block)
		mustWrite(t, again, i*volume.Block)
	}
	if same, err := h.Same(t.Context(), url, "file:"+link); err != nil || !same {
		t.Errorf("the two are the same: %v, %v", same, err)
	}
	if err := h.Remember("one", "file:"+link); err != nil || len(h.StoresOf("one")) != 1 {
		t.Errorf("one is in %q, %v", h.StoresOf("one"), err)
	}
	if n, err := os.ReadDir(filepath.Join(dir, "store", "node")); err != nil || len(n) != 1 || len(h.Stores()) != 1 {
		t.Errorf("%d leases, stores %q (%v)", len(n), h.Stores(), err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = openDirs(t, root)
	if err := h.ResumeAll(); err != nil {
		t.Fatal(err)
	}
	two, _ = mustAttachAt(t, h, url, "two")
	mustWrite(t, two, 0)
	mustDetach(t, h, first, second)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOtherURLAfterReboot: where the lease of before must end first, it is waited for until it is seen that two URLs lead to one store.
func TestOtherURLAfterReboot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	url := newDirStore(t, filepath.Join(dir, "store"), "data")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "store"), link); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	h := openDirs(t, root)
	_, head := mustAttachAt(t, h, url, "data")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	// As after a reboot, nothing says that this is the life of before.
	if err := os.RemoveAll(filepath.Join(root, "leases")); err != nil {
		t.Fatal(err)
	}
	h = openDirs(t, root)
	if _, err := h.Store(t.Context(), "file:"+link); err != nil {
		t.Error(err)
	}
	if err := h.ResumeAll(); err != nil {
		t.Fatal(err)
	}
	mustDetach(t, h, head)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestCopiedStore: a copy of a store is refused beside the original, whether a volume is attached or not, by a node that was just
// started, and while the original is away; the original is not disturbed.
func TestCopiedStore(t *testing.T) {
	dir := t.TempDir()
	url := newDirStore(t, filepath.Join(dir, "store"), "data")
	root, backup := filepath.Join(dir, "root"), "file:"+filepath.Join(dir, "backup")
	h := openDirs(t, root)
	mustRefuse := func(when string) {
		t.Helper()
		_, _, err := attachAt(t.Context(), h, backup, "data")
		if !errors.Is(err, host.ErrCopy) || !strings.Contains(err.Error(), url) || !strings.Contains(err.Error(), backup) {
			t.Errorf("%s: %v", when, err)
		}
	}
	d, head := mustAttachAt(t, h, url, "data")
	mustWrite(t, d, 0)
	copyDir(t, filepath.Join(dir, "store"), filepath.Join(dir, "backup"))
	mustRefuse("attached")
	mustWrite(t, d, volume.Block)
	mustDetach(t, h, head)
	mustRefuse("detached")
	if known := h.StoresOf("data"); !slices.Equal(known, []string{url}) {
		t.Errorf("its stores are %q", known)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = openDirs(t, root)
	mustRefuse("started again")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "store"), filepath.Join(dir, "aside")); err != nil {
		t.Fatal(err)
	}
	h = openDirs(t, root)
	mustRefuse("the original is away")
	if err := os.Rename(filepath.Join(dir, "aside"), filepath.Join(dir, "store")); err != nil {
		t.Fatal(err)
	}
	d, head = mustAttachAt(t, h, url, "data")
	mustWrite(t, d, 0)
	mustDetach(t, h, head)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestMovedStore: a store that was moved as this node left it is recognised at its new place.
func TestMovedStore(t *testing.T) {
	dir := t.TempDir()
	url := newDirStore(t, filepath.Join(dir, "store"), "data")
	root := filepath.Join(dir, "root")
	h := openDirs(t, root)
	d, head := mustAttachAt(t, h, url, "data")
	mustWrite(t, d, 0)
	mustDetach(t, h, head)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "store"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	h = openDirs(t, root)
	d, head = mustAttachAt(t, h, "file:"+filepath.Join(dir, "moved"), "data")
	mustWrite(t, d, 0)
	mustDetach(t, h, head)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNodeLock: a second process with a copy of a root is refused by the name of the first, which goes on. One that follows an
// ended one is not.
func TestNodeLock(t *testing.T) {
	dir := t.TempDir()
	opts := host.Options{Root: filepath.Join(dir, "root"), OpenStore: openDir, Locks: filepath.Join(dir, "locks")}
	h, err := host.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	copyDir(t, opts.Root, filepath.Join(dir, "copy"))
	other := opts
	other.Root = filepath.Join(dir, "copy")
	second, err := host.Open(other)
	if want := fmt.Sprintf("process %d with %s", os.Getpid(), opts.Root); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a copy: %v, want %q", err, want)
	}
	if second != nil {
		t.Error("it was opened")
	}
	var ending sync.WaitGroup
	ending.Go(func() {
		time.Sleep(100 * time.Millisecond) // the next one waits for it meanwhile
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	again, err := host.Open(opts)
	ending.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(opts.Locks); err != nil || len(left) > 0 {
		t.Errorf("%d locks stay (%v)", len(left), err)
	}
}

// TestNameInTwoStores: volumes of one name in two stores are both known, in another life of the node, too, until each is forgotten, and
// metrics tell them apart. The record of a version that knew one store of a name is read.
func TestNameInTwoStores(t *testing.T) {
	dir := t.TempDir()
	a, b := newDirStore(t, filepath.Join(dir, "a"), "data"), newDirStore(t, filepath.Join(dir, "b"), "data")
	root := filepath.Join(dir, "root")
	h := openDirs(t, root)
	_, first := mustAttachAt(t, h, a, "data")
	record := filepath.Join(root, host.RecordFile.Name)
	if p, err := os.ReadFile(record); err != nil || !strings.Contains(strings.ReplaceAll(string(p), " ", ""), `"data":"`+a+`"`) {
		t.Errorf("a name in one store is recorded otherwise than before: %s, %v", p, err)
	}
	_, second := mustAttachAt(t, h, b, "data")
	r := prometheus.NewRegistry()
	h.Register(r)
	if _, err := r.Gather(); err != nil {
		t.Error(err)
	}
	mustDetach(t, h, first, second)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = openDirs(t, root)
	if known := h.StoresOf("data"); !slices.Equal(known, []string{a, b}) {
		t.Errorf("known in %q", known)
	}
	for _, url := range []string{a, b} {
		if err := h.Forget("data", url); err != nil || slices.Contains(h.StoresOf("data"), url) {
			t.Errorf("%s was to be forgotten: %q, %v", url, h.StoresOf("data"), err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}
