package snapshotter

import (
	"errors"
	"net/http"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// remove removes snapshots and waits until nothing is left of them.
func (b *bed) remove(names ...string) {
	b.t.Helper()
	for _, name := range names {
		dir := b.snapshotDir(b.id(name))
		if err := b.Remove(b.ctx, name); err != nil {
			b.t.Fatal(err)
		}
		b.gone(dir)
	}
}

// gone returns when a removed snapshot's directory is gone, which is the last of it.
func (b *bed) gone(dir string) {
	b.t.Helper()
	eventually(b.t, dir+" goes", func() bool {
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
}

// servesNobody fails the test if devices are exported that nothing mounts any more.
func (b *bed) servesNobody() {
	b.t.Helper()
	b.kernel.mu.Lock()
	defer b.kernel.mu.Unlock()
	if b.kernel.served != 0 {
		b.t.Errorf("%d devices are served to nobody", b.kernel.served)
	}
}

// TestRemove: with the last snapshot of a layer go its mount, its directory, and its image in the cache.
func TestRemove(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			im := newImage(t, "app", nil, f.make(t, file("a", noise(1, 10_000))))
			b := newBed(t, newOrigin(t, im), nil)
			name := b.pull(im)
			b.run("container", name)
			dir := b.upperPath(b.id(name))
			b.remove("container", name)
			if on := b.kernel.on(dir); len(on) != 0 {
				t.Errorf("still mounted: %v", on)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its directory: %v", err)
			}
			if ids, err := b.cached.IDs(); err != nil || len(ids) != 0 {
				t.Errorf("in the cache: %v, %v", ids, err)
			}
			if st := b.Status(); len(st.Layers) != 0 {
				t.Errorf("status: %+v", st.Layers)
			}
			b.servesNobody()
			b.sees(b.run("again", b.pull(im)), "a", noise(1, 10_000))
		})
	}
}

// TestRemoveOneOfTwo: an image that two snapshots share stays with the second, and its bytes are counted once.
func TestRemoveOneOfTwo(t *testing.T) {
	shared, other := estargzLayer(t, file("a", noise(2, 50_000))), estargzLayer(t, file("b", noise(3, 1000)))
	one, two := newImage(t, "one", nil, shared), newImage(t, "two", nil, other, shared)
	b := newBed(t, newOrigin(t, one, two), nil)
	first := b.pull(one)
	b.run("first", first)
	second := b.pull(two)
	mounts := b.run("second", second)
	b.sees(mounts, "a", noise(2, 50_000))
	uses := func(name string) int64 {
		u, err := b.Usage(b.ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return u.Size
	}
	if a, b := uses(first), uses(second); a < 50_000 || b != 0 {
		t.Errorf("the layer's bytes are counted as %d and %d", a, b)
	}
	b.remove("first", first)
	b.origin.Answer("/blobs/", http.StatusInternalServerError)
	b.sees(mounts, "a", noise(2, 50_000))
	if n := uses(second); n < 50_000 {
		t.Errorf("the layer's bytes are counted as %d", n)
	}
}

// TestRemoveWhileOpening: a layer that is on its way is given up with its snapshot.
func TestRemoveWhileOpening(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			im := newImage(t, "app", nil, f.make(t, crowd(file("a", noise(4, 10_000)))...))
			b := newBed(t, newOrigin(t, im), nil)
			release := b.origin.Hold("/blobs/")
			name := b.pull(im)
			b.remove(name)
			release()
			if ids, err := b.cached.IDs(); err != nil || len(ids) != 0 {
				t.Errorf("in the cache: %v, %v", ids, err)
			}
		})
	}
}

// TestCleanupTriesAgain: what cannot be unmounted or forgotten now is taken away by the next Cleanup.
func TestCleanupTriesAgain(t *testing.T) {
	for _, operation := range []string{"unmount", "forget"} {
		t.Run(operation, func(t *testing.T) {
			im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(5, 1000))))
			b := newBed(t, newOrigin(t, im), nil)
			name := b.pull(im)
			b.run("container", name)
			b.remove("container")
			id := b.id(name)
			b.kernel.fail(operation, unix.EBUSY)
			if err := b.Remove(b.ctx, name); err != nil {
				t.Fatal(err)
			}
			eventually(t, "Cleanup says that it is busy", func() bool { return errors.Is(b.Cleanup(b.ctx), unix.EBUSY) })
			if _, err := os.Stat(b.snapshotDir(id)); err != nil {
				t.Errorf("its directory: %v", err)
			}
			b.kernel.fail(operation, nil)
			if err := b.Cleanup(b.ctx); err != nil {
				t.Errorf("got %v", err)
			}
			b.gone(b.snapshotDir(id))
			if ids, err := b.cached.IDs(); err != nil || len(ids) != 0 {
				t.Errorf("in the cache: %v, %v", ids, err)
			}
		})
	}
}
