package snapshotter

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/mounts"
)

// held is a bed whose mounts outlive it.
func held(b *bed) { b.kernel.outlive = true }

// container mounts a container's root file system, as containerd does, and returns where.
func (b *bed) container(name string, of []mount.Mount) string {
	at := "/run/containerd/io.containerd.runtime.v2.task/default/" + name + "/rootfs"
	b.kernel.mountOther(mounts.Mount{Dir: at, Type: of[0].Type, Options: strings.Join(of[0].Options, ",")})
	return at
}

// TestRestartOffline: after a restart every layer is mounted again from the cache, without a word to the registry.
func TestRestartOffline(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			body := noise(1, 30_000)
			im := newImage(t, "app", nil, f.make(t, file("a", body)))
			b := newBed(t, newOrigin(t, im), nil)
			b.sees(b.run("container", b.pull(im)), "a", body)
			b.close()
			b.origin.Close()
			b.open()
			if st := b.statusOf(im.Layers[0]); st.State != "mounted" {
				t.Errorf("status: %+v", st)
			}
			mounts, err := b.Mounts(b.ctx, "container")
			if err != nil {
				t.Fatal(err)
			}
			b.sees(mounts, "a", body)
		})
	}
}

// TestTakeOver: a process that comes after another serves what that one mounted; nothing is mounted anew, and
// containers go on.
func TestTakeOver(t *testing.T) {
	for _, way := range blockdev.Backends {
		t.Run(string(way), func(t *testing.T) {
			body := noise(2, 200_000)
			im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
			b := newBed(t, newOrigin(t, im), func(b *bed) {
				held(b)
				b.opts.Backend = way
			})
			mounts := b.run("container", b.pull(im))
			dir := dirs(mounts)[1]
			b.restart()
			if on := b.kernel.on(dir); len(on) != 1 || on[0].way != way {
				t.Fatalf("mounted: %+v", on)
			}
			if st := b.statusOf(im.Layers[0]); st.State != "mounted" || st.Backend != string(way) {
				t.Errorf("status: %+v", st)
			}
			b.sees(mounts, "a", body)
			if st := b.Status(); len(st.Broken) != 0 {
				t.Errorf("broken: %+v", st.Broken)
			}
		})
	}
}

// TestHolderDied: where nobody serves what a container has mounted, the container is named until it has ended, over
// restarts, and the layer is mounted anew for others.
func TestHolderDied(t *testing.T) {
	for _, way := range blockdev.Backends {
		t.Run(string(way), func(t *testing.T) {
			body := noise(3, 200_000)
			im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
			b := newBed(t, newOrigin(t, im), func(b *bed) {
				held(b)
				b.opts.Backend = way
			})
			name := b.pull(im)
			at := b.container("web", b.run("container", name))
			b.close()
			b.kernel.outlive = false
			b.kernel.kill()
			b.kernel.outlive = true
			b.open()
			for range 2 {
				broken := b.Status().Broken
				if len(broken) != 1 || broken[0].Container != "default/web" || broken[0].Mounted != at ||
					!strings.Contains(broken[0].Reason, "both ended") {
					t.Fatalf("broken: %+v", broken)
				}
				b.sees(b.run("other"+uniqueSuffix(), name), "a", body)
				b.restart()
			}
			b.kernel.unmountOther(at)
			if _, err := b.Mounts(b.ctx, "container"); err != nil {
				t.Fatal(err)
			}
			if broken := b.Status().Broken; len(broken) != 0 {
				t.Errorf("broken: %+v", broken)
			}
			b.container("web", b.run("container 2", name))
			b.restart()
			if broken := b.Status().Broken; len(broken) != 0 {
				t.Errorf("broken after a restart: %+v", broken)
			}
		})
	}
}

// TestTakeOverFails: a mount that cannot be connected with its image is taken away and made anew.
func TestTakeOverFails(t *testing.T) {
	body := noise(4, 100_000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), held)
	mounts := b.run("container", b.pull(im))
	b.container("web", mounts)
	b.close()
	b.kernel.fail("adopt", errors.New("number in use"))
	b.open()
	b.kernel.fail("adopt", nil)
	if on := b.kernel.on(dirs(mounts)[1]); len(on) != 1 {
		t.Errorf("mounted: %+v", on)
	}
	b.sees(mounts, "a", body)
	if broken := b.Status().Broken; len(broken) != 1 || !strings.Contains(broken[0].Reason, "number in use") {
		t.Errorf("broken: %+v", broken)
	}
}

// TestTakeOverComplete: what is complete needs nobody, whatever became of the holder.
func TestTakeOverComplete(t *testing.T) {
	body := noise(5, 50_000)
	im := newImage(t, "app", nil, gzipLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), func(b *bed) {
		held(b)
		b.opts.Backend = blockdev.Precontent
	})
	mounts := b.run("container", b.pull(im))
	b.close()
	b.kernel.outlive = false
	b.kernel.kill()
	b.kernel.outlive = true
	b.open()
	if st := b.statusOf(im.Layers[0]); st.State != "mounted" || st.Backend != "direct" || !st.Verified {
		t.Errorf("status: %+v", st)
	}
	if broken := b.Status().Broken; len(broken) != 0 {
		t.Errorf("broken: %+v", broken)
	}
	b.sees(mounts, "a", body)
}

// TestCacheLost: layers whose images are gone are opened again.
func TestCacheLost(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			body := noise(6, 30_000)
			im := newImage(t, "app", nil, f.make(t, file("a", body)))
			b := newBed(t, newOrigin(t, im), nil)
			b.run("container", b.pull(im))
			b.close()
			if err := os.RemoveAll(filepath.Join(b.root, "cache")); err != nil {
				t.Fatal(err)
			}
			b.open()
			mounts, err := b.Mounts(b.ctx, "container")
			if err != nil {
				t.Fatal(err)
			}
			b.sees(mounts, "a", body)
		})
	}
}

// TestDamagedRecord: a layer whose record cannot be read is not used, says so, and can be removed; others are not
// harmed.
func TestDamagedRecord(t *testing.T) {
	for name, record := range map[string]string{
		"empty": "", "no JSON": "hello", "a later version": `{"version": 99, "name": "x"}`, "no digest": `{"version": 1, "name": "x"}`,
		"a digest that is none": `{"version": 1, "name": "x", "source": {"descriptor": {"digest": "../../x"}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			body := noise(7, 10_000)
			bad := newImage(t, "bad", nil, estargzLayer(t, file("a", noise(8, 1000))))
			good := newImage(t, "good", nil, estargzLayer(t, file("a", body)))
			b := newBed(t, newOrigin(t, bad, good), nil)
			lost := b.pull(bad)
			b.run("good", b.pull(good))
			path := filepath.Join(b.snapshotDir(b.id(lost)), bindingFile)
			b.close()
			if err := os.WriteFile(path, []byte(record), 0o600); err != nil {
				t.Fatal(err)
			}
			b.open()
			mounts, err := b.Mounts(b.ctx, "good")
			if err != nil {
				t.Fatal(err)
			}
			b.sees(mounts, "a", body)
			i := slices.IndexFunc(b.Status().Layers, func(l LayerStatus) bool { return l.Snapshot == lost })
			if i < 0 || b.Status().Layers[i].State != "quarantined" || !strings.Contains(b.Status().Layers[i].Reason, bindingFile) {
				t.Errorf("status: %+v", b.Status().Layers)
			}
			if _, err := b.Prepare(b.ctx, "bad", lost); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Mounts(b.ctx, "bad"); err == nil || !strings.Contains(err.Error(), "quarantined") {
				t.Errorf("mounts: %v", err)
			}
			b.remove("bad", lost)
			b.sees(b.run("bad again", b.pull(bad)), "a", noise(8, 1000))
		})
	}
}

// TestStrays: directories, images and mounts that belong to nothing go when the next process starts; what others
// mounted below the root stays.
func TestStrays(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(9, 1000))))
	b := newBed(t, newOrigin(t, im), nil)
	b.fetch(im)
	if _, err := b.Resolve(b.ctx, im.Target.Digest, b.ref(im), nil); err != nil {
		t.Fatal(err)
	}
	if ids, err := b.cached.IDs(); err != nil || len(ids) != 1 {
		t.Fatalf("in the cache: %v, %v", ids, err)
	}
	b.close()
	for _, dir := range []string{"snapshots/99/fs", "probe-1"} {
		if err := os.MkdirAll(filepath.Join(b.root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []mounts.Mount{
		{Dir: filepath.Join(b.root, "snapshots/99/fs"), Type: "erofs", Source: filepath.Join(b.root, "cache/x")},
		{Dir: b.kernel.filesDir(), Type: "fuse.remora"},
		{Dir: filepath.Join(b.root, "volumes"), Type: "ext4"},
		{Dir: "/elsewhere", Type: "erofs"},
	} {
		b.kernel.mountOther(m)
	}
	b.opts.NotOurs = []string{filepath.Join(b.root, "volumes")}
	b.open()
	left, err := b.kernel.Own()
	if err != nil || len(left) != 2 || left[0].Type != "ext4" || left[1].Dir != "/elsewhere" {
		t.Errorf("mounted: %+v, %v", left, err)
	}
	for _, dir := range []string{"snapshots/99", "probe-1"} {
		if _, err := os.Stat(filepath.Join(b.root, dir)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if ids, err := b.cached.IDs(); err != nil || len(ids) != 0 {
		t.Errorf("in the cache: %v, %v", ids, err)
	}
}

// TestNewFails: a Snapshotter that cannot start says why, takes nothing with it, and can be started again.
func TestNewFails(t *testing.T) {
	body := noise(10, 1000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	for _, operation := range []string{"probe", "own", "start"} {
		t.Run(operation, func(t *testing.T) {
			b := newBed(t, newOrigin(t, im), held)
			b.run("container", b.pull(im))
			b.close()
			b.kernel.fail(operation, errors.New("not now"))
			if err := b.tryOpen(); err == nil || !strings.Contains(err.Error(), "not now") {
				t.Errorf("got %v", err)
			}
			b.Snapshotter = nil
			b.kernel.fail(operation, nil)
			b.open()
			mounts, err := b.Mounts(b.ctx, "container")
			if err != nil {
				t.Fatal(err)
			}
			b.sees(mounts, "a", body)
		})
	}
}

// TestRestartWhileRegistryIsAway: what is not in the cache cannot be mounted; the rest can, and the first Mounts after
// the registry is back finds it.
func TestRestartWhileRegistryIsAway(t *testing.T) {
	body := noise(11, 10_000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), nil)
	b.run("container", b.pull(im))
	b.close()
	if err := os.RemoveAll(filepath.Join(b.root, "cache")); err != nil {
		t.Fatal(err)
	}
	b.origin.Answer("/blobs/", http.StatusServiceUnavailable)
	b.open()
	if _, err := b.Mounts(b.ctx, "container"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v", err)
	}
	if st := b.statusOf(im.Layers[0]); st.State != "failed" || !strings.Contains(st.Reason, "503") {
		t.Errorf("status: %+v", st)
	}
	b.origin.SetFault(nil)
	var mounts []mount.Mount
	eventually(t, "the layer is mounted", func() bool { // the host is left alone for a moment
		var err error
		mounts, err = b.Mounts(b.ctx, "container")
		return err == nil
	})
	b.sees(mounts, "a", body)
}
