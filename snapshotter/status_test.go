package snapshotter

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/remora-storage/remora/blockdev"
	"github.com/remora-storage/remora/blockdev/mounts"
	"github.com/remora-storage/remora/blockdev/probe"
	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// TestCachedAndKept: the images in the cache are listed with the images that they are of, and an operator may pin them.
func TestCachedAndKept(t *testing.T) {
	l := estargzLayer(t, file("a", noise(1, 10_000)))
	one, two := newImage(t, "one", nil, l), newImage(t, "two", nil, estargzLayer(t, file("b", nil)), l)
	b := newBed(t, newOrigin(t, one, two), nil)
	b.run("one", b.pull(one))
	b.run("two", b.pull(two))
	find := func() CachedLayer {
		all := b.Cached()
		i := slices.IndexFunc(all, func(c CachedLayer) bool { return c.Digest == l.Digest() })
		if i < 0 || len(all) != 2 {
			t.Fatalf("got %+v", all)
		}
		return all[i]
	}
	if c := find(); !slices.Equal(c.Images, []string{b.ref(one), b.ref(two)}) || c.Kept || c.Disk == 0 {
		t.Errorf("got %+v", c)
	}
	if n, err := b.Keep(b.ref(one), true); n != 1 || err != nil {
		t.Errorf("kept %d, %v", n, err)
	}
	if c := find(); !c.Kept || c.Evictable {
		t.Errorf("got %+v", c)
	}
	b.restart()
	if c := find(); !c.Kept {
		t.Errorf("after a restart: %+v", c)
	}
	if n, err := b.Keep(b.ref(one), false); n != 1 || err != nil {
		t.Errorf("let go of %d, %v", n, err)
	}
	if _, err := b.Keep("reg.test/none:1", true); err == nil || !strings.Contains(err.Error(), "reg.test/none:1") {
		t.Errorf("got %v", err)
	}
}

// values returns the values of a metric by their label, "" for none.
func (b *bed) values(name string) map[string]float64 {
	b.t.Helper()
	r := prometheus.NewRegistry()
	b.Register(r)
	all, err := r.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range all {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			label := ""
			if len(m.GetLabel()) > 0 {
				label = m.GetLabel()[0].GetValue()
			}
			got[label] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return got
}

// TestMetrics: layers are counted by how they are mounted.
func TestMetrics(t *testing.T) {
	lazy := newImage(t, "lazy", nil, estargzLayer(t, file("a", noise(1, 100_000))))
	whole := newImage(t, "whole", nil, gzipLayer(t, file("a", noise(2, 1000))))
	b := newBed(t, newOrigin(t, lazy, whole), nil)
	b.run("lazy", b.pull(lazy))
	b.run("whole", b.pull(whole))
	if got := b.values("remora_snapshotter_layers"); !maps.Equal(got, map[string]float64{"direct": 1, "fuse-file": 1}) {
		t.Errorf("got %v", got)
	}
	want := map[string]float64{"failed": 0, "gone": 0, "quarantined": 0}
	if got := b.values("remora_snapshotter_broken_layers"); !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// TestTrace: who listens is told of the index, the image, the mount, and each fetch and wait, and after stop of nothing.
func TestTrace(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(1, 1<<20)), file("b", noise(2, 1<<20))))
	b := newBed(t, newOrigin(t, im), nil)
	var mu sync.Mutex
	spans := map[string]layers.Span{}
	stop := b.Trace(func(s layers.Span) {
		mu.Lock()
		defer mu.Unlock()
		spans[s.Kind] = s
	})
	mounts := b.run("container", b.pull(im))
	if _, err := b.readAs(mounts, "a", os.Getpid()); err != nil {
		t.Fatal(err)
	}
	b.settled(im)
	kinds := []string{"index", "image", "mount", "fetch", "wait"}
	eventually(t, "all is told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return !slices.ContainsFunc(kinds, func(kind string) bool { return spans[kind].Kind == "" })
	})
	stop()
	mu.Lock()
	for _, kind := range kinds {
		if s, ok := spans[kind]; !ok || s.Digest != im.Layers[0].Digest() || s.Began.IsZero() || s.Err != nil {
			t.Errorf("%s: %+v, %v", kind, s, ok)
		}
	}
	if s := spans["wait"]; s.PID != os.Getpid() || s.What == "" {
		t.Errorf("wait: %+v", s)
	}
	clear(spans)
	mu.Unlock()
	b.sees(mounts, "b", noise(2, 1<<20))
	mu.Lock()
	defer mu.Unlock()
	if len(spans) != 0 {
		t.Errorf("told after the end: %+v", spans)
	}
}

// TestWaiting: a process whose read waits for long is named, with the image that it waits for.
func TestWaiting(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(1, 1<<20)), file("b", noise(2, 1<<20))))
	b := newBed(t, newOrigin(t, im), nil)
	mounts := b.run("container", b.pull(im))
	b.settled(im)
	release := b.origin.Hold("/blobs/")
	var reader sync.WaitGroup
	reader.Go(func() {
		if _, err := b.readAs(mounts, "a", os.Getpid()); err != nil {
			t.Errorf("read: %v", err)
		}
	})
	eventually(t, "the reader is named", func() bool { return len(b.Status().Waiting) > 0 })
	w := b.Status().Waiting[0]
	if w.PID != os.Getpid() || w.Command == "" || w.Image != b.ref(im) || w.Digest != im.Layers[0].Digest() || time.Since(w.Since) < longWait {
		t.Errorf("got %+v", w)
	}
	release()
	reader.Wait()
	if all := b.Status().Waiting; len(all) != 0 {
		t.Errorf("got %+v", all)
	}
}

// TestExpose: the image of a layer is a file for as long as somebody wants it.
func TestExpose(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(1, 1000))))
	b := newBed(t, newOrigin(t, im), nil)
	b.pull(im)
	path, end, err := b.Expose(b.ctx, im.Target.Digest, im.Layers[0].Digest(), b.ref(im))
	if err != nil || !strings.HasPrefix(path, b.root) {
		t.Fatalf("got %q, %v", path, err)
	}
	end()
	_, _, err = b.Expose(b.ctx, im.Target.Digest, digest.FromString("x"), b.ref(im))
	if err == nil || !strings.Contains(err.Error(), "no lazy layer") {
		t.Errorf("a layer that is not the image's: %v", err)
	}
	if _, _, err := b.Expose(b.ctx, digest.FromString("x"), im.Layers[0].Digest(), ""); err == nil {
		t.Error("an image that is not there")
	}
	b.kernel.fail("expose", errors.New("no FUSE"))
	_, _, err = b.Expose(b.ctx, im.Target.Digest, im.Layers[0].Digest(), b.ref(im))
	if err == nil || !strings.Contains(err.Error(), "no FUSE") {
		t.Errorf("got %v", err)
	}
}

// TestRecord: what one container reads of an image is recorded, in order, whoever else uses the layers.
func TestRecord(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(1, 1000)), file("b", noise(2, 1000)), file("c", noise(3, 1000))))
	b := newBed(t, newOrigin(t, im), nil)
	name := b.pull(im)
	others := b.run("other", name)
	r, err := b.Record(b.ctx, im.Target.Digest, b.ref(im))
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := b.Prepare(b.ctx, "recorded", name, snapshots.WithLabels(map[string]string{RecordLabel: r.ID}))
	if err != nil {
		t.Fatal(err)
	}
	b.sees(mounts, "b", noise(2, 1000))
	b.sees(others, "c", noise(3, 1000))
	b.sees(mounts, "a", noise(1, 1000))
	p, err := b.Recorded(r.ID)
	if err != nil || !slices.Equal(p.Paths(), []string{"/b", "/a"}) || p.Image != im.Target.Digest {
		t.Errorf("got %+v, %v", p, err)
	}
	for range 2 {
		if err := b.EndRecording(r.ID); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.look(mounts, "a"); err == nil {
		t.Error("the recording's mounts are still there")
	}
	if _, err := b.Recorded(r.ID); err == nil {
		t.Error("a recording that has ended is known")
	}
	b.sees(others, "a", noise(1, 1000))
}

// TestRecordFails: nothing is recorded where nothing is lazy, or cannot be mounted; what was mounted is taken away.
func TestRecordFails(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", nil)))
	b := newBed(t, newOrigin(t, im), nil)
	b.fetch(im)
	if _, err := b.Record(b.ctx, im.Target.Digest, b.ref(im)); err == nil || !strings.Contains(err.Error(), "nothing can be recorded") {
		t.Errorf("got %v", err)
	}
	b.run("container", b.pull(im))
	b.kernel.fail("mount", errors.New("no room"))
	if _, err := b.Record(b.ctx, im.Target.Digest, b.ref(im)); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("got %v", err)
	}
	b.kernel.fail("mount", nil)
	if _, err := b.Record(b.ctx, im.Target.Digest, b.ref(im)); err != nil { // Close ends it
		t.Error(err)
	}
	b.close()
	b.kernel.found.Ways = map[blockdev.Backend]probe.Result{blockdev.Precontent: {OK: true}}
	b.opts.Backend = blockdev.Precontent
	b.open()
	if _, err := b.Record(b.ctx, im.Target.Digest, b.ref(im)); err == nil || !strings.Contains(err.Error(), "no back end") {
		t.Errorf("got %v", err)
	}
}

// TestDetach: everything is unmounted when nobody uses it; the error names who does; and the next start of a container
// mounts its layers again.
func TestDetach(t *testing.T) {
	body := noise(1, 10_000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), held)
	mounts := b.run("container", b.pull(im))
	at := b.container("web", mounts)
	if _, err := b.Detach(); err == nil || !strings.Contains(err.Error(), "default/web") {
		t.Errorf("with a container: %v", err)
	}
	b.kernel.unmountOther(at)
	dir := dirs(mounts)[1]
	b.kernel.setBusy(dir, true)
	if _, err := b.Detach(); err == nil || !strings.Contains(err.Error(), "fuser -vm "+dir) {
		t.Errorf("with an open file: %v", err)
	}
	b.kernel.setBusy(dir, false)
	if n, err := b.Detach(); n != 1 || err != nil {
		t.Errorf("detached %d, %v", n, err)
	}
	if on := b.kernel.on(dir); len(on) != 0 {
		t.Errorf("still mounted: %+v", on)
	}
	if st := b.statusOf(im.Layers[0]); st.Backend != "" {
		t.Errorf("status: %+v", st)
	}
	mounts, err := b.Mounts(b.ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	b.sees(mounts, "a", body)
}

// TestToldAgainWhileDetaching: a container that was told its mounts asks again while a Detach waits for it to mount them. It is told,
// and the Detach is refused once the container has mounted.
func TestToldAgainWhileDetaching(t *testing.T) {
	body := noise(1, 10_000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), held)
	b.run("container", b.pull(im))
	refused := make(chan error)
	go func() {
		_, err := b.Detach()
		refused <- err
	}()
	eventually(t, "the Detach waits", func() bool {
		free := b.mountings.mounting.TryRLock()
		if free {
			b.mountings.mounting.RUnlock()
		}
		return !free
	})
	mounts, err := b.Mounts(b.ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	b.sees(mounts, "a", body)
	b.container("web", mounts)
	if err := <-refused; err == nil || !strings.Contains(err.Error(), "default/web") {
		t.Errorf("with a container: %v", err)
	}
	b.sees(mounts, "a", body)
}

// TestDetachAndOtherNamespaces: an image file that is mounted elsewhere is waited for, and named if it stays.
func TestDetachAndOtherNamespaces(t *testing.T) {
	b := newBed(t, newOrigin(t), nil)
	b.kernel.mountElsewhere(mounts.Namespace{PID: "1", Own: true}, mounts.Mount{Dir: "/mnt", Type: "erofs", Source: b.root + "/cache/x/image"})
	if _, err := b.Detach(); err == nil || !strings.Contains(err.Error(), "/mnt") {
		t.Errorf("got %v", err)
	}
	b.kernel.fail("everywhere", errors.New("no /proc"))
	if _, err := b.Detach(); err == nil || !strings.Contains(err.Error(), "no /proc") {
		t.Errorf("got %v", err)
	}
}

// TestReusedLoop: a loop device that has another's file by now shows none of our layers. What is not known counts as ours.
func TestReusedLoop(t *testing.T) {
	b := newBed(t, newOrigin(t), nil)
	for file, reused := range map[string]bool{"": false, "/2": false, b.root + "/fuse/2": false, "/elsewhere/fuse/2": true} {
		b.kernel.loops = map[string]string{"/dev/loop9": file}
		if got := b.detaching.reused(mounts.Mount{Type: "erofs", Source: "/dev/loop9"}); got != reused {
			t.Errorf("on %q: %v", file, got)
		}
	}
}

// TestDetachAndViews: a layer of which a view is mounted, which is a bind mount, stays with what serves it, whatever the way, and
// so does one whose place something else is to take.
func TestDetachAndViews(t *testing.T) {
	for _, way := range blockdev.Backends {
		t.Run(string(way), func(t *testing.T) {
			im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(1, 100_000))), estargzLayer(t, file("b", noise(2, 100_000))))
			b := newBed(t, newOrigin(t, im), func(b *bed) { b.opts.Backend = way })
			upper := b.pull(im)
			info, err := b.Stat(b.ctx, upper)
			if err != nil {
				t.Fatal(err)
			}
			lower := info.Parent
			b.run("container", upper)
			b.view("view", lower)
			view, err := b.Mounts(b.ctx, "view")
			if err != nil {
				t.Fatal(err)
			}
			b.detaching.mu.Lock()
			clear(b.detaching.answered) // as when those that were answered have mounted what they were told
			b.detaching.mu.Unlock()
			used := func() map[string]bool {
				all := map[string]bool{}
				for _, bound := range b.bindings.all() {
					used, err := b.detaching.uses(bound)
					if err != nil {
						t.Fatal(err)
					}
					all[bound.name()] = used
				}
				return all
			}
			if all := used(); len(all) != 2 || all[lower] || all[upper] {
				t.Errorf("before: used %v", all)
			}
			on := b.kernel.on(filepath.Clean(view[0].Source))
			shows := on[len(on)-1].Mount
			if shows.Dir = "/view"; view[0].Type != "bind" {
				t.Fatalf("a view of one layer is %+v", view)
			}
			b.kernel.mountOther(shows)
			if all := used(); len(all) != 2 || !all[lower] || all[upper] {
				t.Errorf("used %v", all)
			}
			if _, err := b.Detach(); err == nil || !strings.Contains(err.Error(), "/view") {
				t.Errorf("detached under a view: %v", err)
			}
			if left := b.kernel.on(filepath.Clean(view[0].Source)); len(left) != len(on) {
				t.Errorf("refused, and %+v is left of what was mounted", left)
			}
			b.kernel.unmountOther("/view")
			if _, err := b.Detach(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestEviction: within a limit, what was read least recently goes and is fetched again.
func TestEviction(t *testing.T) {
	a, c := noise(1, 4<<20), noise(2, 4<<20)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", a), file("c", c)))
	b := newBed(t, newOrigin(t, im), func(b *bed) { b.limit = 6 << 20 })
	mounts := b.run("container", b.pull(im))
	for range 2 {
		b.sees(mounts, "a", a)
		b.sees(mounts, "c", c)
	}
	if used, limit := b.cached.Usage(); used > limit {
		t.Errorf("%d bytes of %d", used, limit)
	}
}

// TestNoRoom: a layer whose tree does not fit the cache is containerd's to unpack.
func TestNoRoom(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			im := newImage(t, "app", nil, f.make(t, file("a", noise(1, 10_000))))
			b := newBed(t, newOrigin(t, im), func(b *bed) { b.limit = 4096 })
			b.fetch(im)
			reasons, err := b.Resolve(b.ctx, im.Target.Digest, b.ref(im), func([]Progress) {})
			if err != nil || !strings.Contains(reasons[im.Layers[0].Digest()], cache.ErrNoRoom.Error()) {
				t.Errorf("got %v, %v", reasons, err)
			}
			b.decline(im, 0, "")
		})
	}
}

// TestBackendOf: a repository may have a back end of its own, which must work here.
func TestBackendOf(t *testing.T) {
	for _, works := range []bool{true, false} {
		im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(1, 1000))))
		b := newBed(t, newOrigin(t, im), func(b *bed) {
			b.opts.BackendOf = func(registry.Repository) blockdev.Backend { return blockdev.FuseTree }
			if !works {
				delete(b.kernel.found.Ways, blockdev.FuseTree)
			}
		})
		if _, err := b.Prepare(b.ctx, "container", b.pull(im)); err != nil {
			t.Fatal(err)
		}
		_, err := b.Mounts(b.ctx, "container")
		if st := b.statusOf(im.Layers[0]); works && (err != nil || st.Backend != string(blockdev.FuseTree)) ||
			!works && (err == nil || !strings.Contains(err.Error(), "the configuration wants fuse-tree")) {
			t.Errorf("works %v: %+v, %v", works, st, err)
		}
	}
}

// TestDetachAndStarts: while containers start, each mounts all of its layers or is told that it cannot; none of them finds a
// layer gone that it was told of.
func TestDetachAndStarts(t *testing.T) {
	starts := 20
	if os.Getenv("REMORA_SOAK") != "" {
		starts = 1000
	}
	body := noise(1, 10_000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	b := newBed(t, newOrigin(t, im), held)
	name := b.pull(im)
	var all sync.WaitGroup
	begun := make(chan struct{})
	ended := make(chan struct{})
	all.Go(func() {
		close(begun)
		for {
			select {
			case <-ended:
				return
			default:
				_, _ = b.Detach() // refused while a container is there
			}
		}
	})
	<-begun
	for i := range starts {
		key := fmt.Sprint("container-", i)
		mounts := b.run(key, name)
		b.sees(mounts, "a", body) // as the kernel finds the layer when it mounts the container's root
		at := b.container("web", mounts)
		b.sees(mounts, "a", body)
		b.kernel.unmountOther(at)
		if err := b.Remove(b.ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	close(ended)
	all.Wait()
}
