package snapshotter

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// twoImages are of two repositories. They share their lowest layer, and containerd unpacked the middle one of the second itself, since the
// registry refused it then.
type twoImages struct {
	*bed
	containerd    *daemon
	first, second *image
	wantFirst     []member
	wantSecond    []member
	topFirst      string // chainIDs
	topSecond     string
}

func newTwoImages(t *testing.T, f format) *twoImages {
	t.Helper()
	low, mid := f.make(t, dir("d", 0o755), file("d/low", honest)), f.make(t, file("d/mid", noise(31, 30_000)))
	top, other := f.make(t, file("d/top", noise(32, 30_000))), f.make(t, file("d/other", noise(33, 30_000)))
	x := &twoImages{first: newImage(t, "first", nil, low, other), second: newImage(t, "second", nil, low, mid, top)}
	x.bed = newBed(t, newOrigin(t, x.first, x.second), withBlobs)
	x.containerd = newDaemon(t, x.bed)
	x.topFirst = x.containerd.pull("default", x.first, nil)
	x.origin.Answer(mid.Digest().String(), http.StatusNotFound)
	x.fetch(x.second)
	x.resolve(x.second)
	x.topSecond = x.containerd.pull("default", x.second, map[int][]member{1: {file("d/mid", noise(31, 30_000))}})
	x.origin.SetFault(nil)
	x.wantFirst = []member{file("d/low", honest), file("d/other", noise(33, 30_000))}
	x.wantSecond = []member{file("d/low", honest), file("d/mid", noise(31, 30_000)), file("d/top", noise(32, 30_000))}
	x.runBoth()
	if n := len(x.Status().Layers); n != 3 {
		t.Fatalf("%d layers are supplied here, not 3 of 4", n)
	}
	return x
}

func (x *twoImages) runBoth() {
	x.t.Helper()
	x.containerd.run("default", x.topSecond, x.wantSecond...)
	x.containerd.run("default", x.topFirst, x.wantFirst...)
}

// TestLostRoot: after the root or its database was lost, what containerd knows is made anew under the names that it knows: when remorad
// starts, and for whoever asks before, however the images and the configuration have changed meanwhile. Then pulls go on, too.
func TestLostRoot(t *testing.T) {
	all := func(x *twoImages) { x.mustRemove(x.root) }
	for name, lose := range map[string]func(x *twoImages){
		"all of it":    all,
		"its database": func(x *twoImages) { x.mustRemove(filepath.Join(x.root, databaseFile)) },
		"what its database held": func(x *twoImages) {
			if err := os.WriteFile(filepath.Join(x.root, databaseFile), noise(1, 5000), 0o600); err != nil {
				x.t.Fatal(err)
			}
		},
		"all, and another way of import": func(x *twoImages) {
			all(x)
			x.opts.Layers.ImportOf = func(registry.Repository) layers.ImportPolicy { return layers.ImportPolicy{Mode: layers.ImportEager} }
		},
		"all, and imports forbidden": func(x *twoImages) {
			all(x)
			x.opts.Layers.ImportOf = func(registry.Repository) layers.ImportPolicy { return layers.ImportPolicy{Mode: layers.ImportOrdinary} }
		},
	} {
		for _, f := range []format{formats[0], formats[2]} { // by parts, and whole
			for _, when := range []string{"at start", "on demand"} {
				t.Run(f.name+"/"+name+", "+when, func(t *testing.T) {
					x := newTwoImages(t, f)
					x.close()
					lose(x)
					x.open()
					if when == "at start" {
						x.Serving()
						eventually(t, "all four layers are made anew", func() bool { return x.committed() == 4 })
						x.unasked()
						x.restart()
						x.unasked()
					}
					x.runBoth()
					if n := x.committed(); n != 4 {
						t.Errorf("%d snapshots of four layers", n)
					}
					x.containerd.pull("default", x.first, nil)
					x.containerd.pull("new", x.second, map[int][]member{0: {dirMember, file("d/low", honest)},
						1: {file("d/mid", noise(31, 30_000))}, 2: {file("d/top", noise(32, 30_000))}})
					x.containerd.run("new", x.topSecond, x.wantSecond...)
					lost, err := ListDamaged(x.root)
					if err != nil || len(lost) > 1 {
						t.Fatalf("%+v, %v", lost, err)
					}
					for _, d := range lost {
						x.mustRemove(d.Aside) // as an operator does
					}
					x.restart()
					x.runBoth()
				})
			}
		}
	}
}

// unasked insists that the four layers that were made anew are as they are until somebody asks for them. Others may still be mounted.
func (x *twoImages) unasked() {
	x.t.Helper()
	states := map[string]int{}
	for _, l := range x.Status().Layers {
		states[l.State]++
	}
	if states["idle"] != 4 || states["opening"] != 0 {
		x.t.Errorf("states of layers: %v", states)
	}
}

// committed counts the snapshots of layers, without what was mounted before a database was lost.
func (b *bed) committed() (n int) {
	b.t.Helper()
	if err := b.Walk(b.ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			n++
		}
		return nil
	}); err != nil && !errdefs.IsNotFound(err) {
		b.t.Fatal(err)
	}
	return n
}

var dirMember = file("d/empty", nil)

// TestLostRootOfImageGone: a layer whose own image containerd has no longer is made anew from another one's that has it.
func TestLostRootOfImageGone(t *testing.T) {
	x := newTwoImages(t, formats[0])
	x.close()
	x.mustRemove(x.root)
	if err := x.store.Delete(x.ctx, x.first.Target.Digest); err != nil {
		t.Fatal(err)
	}
	x.open()
	x.Serving()
	eventually(t, "three layers are made anew", func() bool { return len(x.Status().Layers) == 3 })
	x.containerd.run("default", x.topSecond, x.wantSecond...)
	ctx := namespaces.WithNamespace(t.Context(), "default")
	if _, err := x.containerd.Prepare(ctx, "container", x.topFirst); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "no image") {
		t.Errorf("of an image that is gone: %v", err)
	}
	x.containerd.pull("default", x.first, nil) // all of it "exists already"
	x.containerd.run("default", x.topFirst, x.wantFirst...)
}

// TestLostRootAskedByMany: whoever asks for a lost snapshot gets the same one.
func TestLostRootAskedByMany(t *testing.T) {
	x := newTwoImages(t, formats[0])
	x.close()
	x.mustRemove(x.root)
	x.open()
	x.Serving()
	ctx := namespaces.WithNamespace(t.Context(), "default")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if info, err := x.containerd.Stat(ctx, x.topSecond); err != nil || info.Parent != x.second.ChainIDs[1].String() {
				t.Errorf("got %+v, %v", info, err)
			}
		})
	}
	all.Wait()
	x.runBoth()
	if n := x.committed(); n != 4 {
		t.Errorf("%d snapshots of four layers", n)
	}
}

// TestLostLoaded: layers of an image that came from no registry are made anew from containerd's content store.
func TestLostLoaded(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			files := []member{file("a", noise(41, 40_000))}
			im := newImage(t, "loaded", nil, f.make(t, files...))
			b := newBed(t, newOrigin(t), withBlobs)
			containerd := newDaemon(t, b)
			b.put(im.ConfigDesc, im.Config, nil)
			b.put(im.Target, im.Manifest, map[string]string{configRefLabel: im.ConfigDesc.Digest.String()})
			b.put(im.Layers[0].Desc, im.Layers[0].Blob, nil)
			top := containerd.unpack("default", im, map[int][]member{0: files})
			containerd.run("default", top, files...)
			b.close()
			b.mustRemove(b.root)
			b.open()
			containerd.run("default", top, files...)
			if err := b.store.Delete(b.ctx, im.Layers[0].Digest()); err != nil {
				t.Fatal(err)
			}
			b.restart()
			containerd.run("default", top, files...)
			b.close()
			b.mustRemove(b.root)
			b.open()
			ctx := namespaces.WithNamespace(t.Context(), "default")
			if _, err := containerd.Prepare(ctx, "container", top); err != nil {
				t.Fatal(err)
			}
			if _, err := containerd.Mounts(ctx, "container"); err == nil {
				t.Error("nobody has the layer, and it is shown")
			}
			if st := b.statusOf(im.Layers[0]); st.State != "failed" || !strings.Contains(st.Image, im.Target.Digest.String()) {
				t.Errorf("status: %+v", st)
			}
		})
	}
}

// TestLostLayerRecordOfMadeAnew: a layer that containerd had unpacked, and that is supplied here since its root was lost, is shown again
// when its record is lost, too, and not taken for an empty one.
func TestLostLayerRecordOfMadeAnew(t *testing.T) {
	x := newTwoImages(t, formats[0])
	x.close()
	x.mustRemove(x.root)
	x.open()
	x.runBoth()
	name := x.boundTo(x.second.Layers[1])
	if !isUnpackedName(name) {
		t.Fatalf("containerd named it %s", name)
	}
	path := filepath.Join(x.snapshotDir(x.id(name)), bindingFile)
	x.close()
	x.mustRemove(path)
	x.open()
	x.mustName(path)
	x.runBoth()
}

// boundTo returns the name of the one snapshot of a layer.
func (b *bed) boundTo(l layer) string { return b.statusOf(l).Snapshot }

// TestLostForGood: a snapshot that containerd does not know is not found, and nothing is made of it.
func TestLostForGood(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", honest)))
	b := newBed(t, newOrigin(t, im), nil)
	newDaemon(t, b)
	b.restart()
	b.fetch(im)
	for _, name := range []string{remotePrefix + "00112233445566778899aabbccddeeff", "default/7/" + im.ChainIDs[0].String()} {
		if _, err := b.Prepare(b.ctx, "container", name); !errdefs.IsNotFound(err) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := b.Stat(b.ctx, name); !errdefs.IsNotFound(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	b.mustHaveNone()
}

// TestLostOrdinary: a layer that is left to containerd, and whose root was lost, comes from another image's repository if its own has it no
// longer; if none has it, its image is released, and a pull begins anew.
func TestLostOrdinary(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root unpacks layers")
	}
	files := []member{file("a", noise(41, 40_000))}
	name := ImageName{Namespace: "default", Name: "app:1"}
	for _, elsewhere := range []bool{true, false} {
		t.Run(fmt.Sprintf("elsewhere %v", elsewhere), func(t *testing.T) {
			l := gzipLayer(t, files...)
			im, twin := newImage(t, "app", []string{"app"}, l), newImage(t, "twin", []string{"twin"}, l)
			r := &released{}
			b := newBed(t, newOrigin(t, im, twin), func(b *bed) {
				withBlobs(b)
				if !elsewhere {
					r.all = b.uses(im, name)
				}
				b.opts.Releases, b.opts.GoneFor = r, time.Nanosecond
				b.opts.Layers.ImportOf = func(registry.Repository) layers.ImportPolicy { return layers.ImportPolicy{Mode: layers.ImportOrdinary} }
			})
			containerd := newDaemon(t, b)
			top := containerd.pull("default", im, map[int][]member{0: files})
			b.close()
			b.mustRemove(b.root)
			b.open()
			b.origin.Answer("/v2/app/blobs/"+l.Digest().String(), http.StatusNotFound)
			ctx := namespaces.WithNamespace(t.Context(), "default")
			if _, err := containerd.Stat(ctx, top); err != nil {
				t.Fatal(err)
			}
			if err := b.mountings.ensure(b.ctx, b.bindings.all()[0]); err == nil {
				t.Fatal("nobody has the layer, and it is shown")
			}
			if elsewhere {
				b.fetch(twin)
				containerd.run("default", top, files...)
				b.restart()
				containerd.run("default", top, files...)
				return
			}
			eventually(t, "the image to be removed", func() bool { return slices.Equal(r.names(), []ImageName{name}) })
		})
	}
}

// TestLostIsNamed: of what containerd knows and a lost root took away, that which cannot be made anew is named until containerd has it no
// longer: what was committed by hand, what a container wrote, and a layer of which containerd has no image.
func TestLostIsNamed(t *testing.T) {
	im, other := newImage(t, "app", nil, estargzLayer(t, file("a", honest))), newImage(t, "other", nil, estargzLayer(t, file("b", honest)))
	b := newBed(t, newOrigin(t, im, other), withBlobs)
	containerd := newDaemon(t, b)
	b.restart()
	top, gone := containerd.pull("default", im, nil), containerd.pull("default", other, nil)
	for _, key := range []string{"work", "container"} {
		if _, err := containerd.Prepare(b.ctx, key, top); err != nil {
			t.Fatal(err)
		}
	}
	if err := containerd.Commit(b.ctx, "mine", "work"); err != nil {
		t.Fatal(err)
	}
	if _, err := containerd.Prepare(b.ctx, "on mine", "mine"); err != nil {
		t.Fatal(err)
	}
	b.close()
	b.mustRemove(b.root)
	if err := b.store.Delete(b.ctx, other.Target.Digest); err != nil {
		t.Fatal(err)
	}
	b.open()
	b.Serving()
	names := func() (all []string) {
		for _, broken := range b.Status().Broken {
			if broken.Reason == "" || broken.Mounted != "" {
				t.Errorf("broken: %+v", broken)
			}
			all = append(all, broken.ID)
		}
		return all
	}
	want := []string{"default/container", "default/mine", "default/on mine", "default/" + gone}
	eventually(t, "what was lost is named", func() bool { return slices.Equal(names(), want) })
	containerd.run("default", top, file("a", honest))
	for _, key := range []string{"container", "on mine", "mine"} {
		if err := containerd.Remove(b.ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	b.fetch(other)
	if err := b.claims.recoverAll(b.ctx); err != nil { // as a minute later
		t.Fatal(err)
	}
	if left := names(); len(left) > 0 {
		t.Errorf("still named: %q", left)
	}
	containerd.run("default", gone, file("b", honest))
}

// TestCommittingIsNotLost: what containerd is committing, and knows by a name that is none here any more, is not taken for lost.
func TestCommittingIsNotLost(t *testing.T) {
	b := newBed(t, nil, nil)
	containerd := newDaemon(t, b)
	b.restart()
	if _, err := containerd.Prepare(b.ctx, "work", ""); err != nil {
		t.Fatal(err)
	}
	looks := func() {
		t.Helper()
		if err := b.claims.recoverAll(b.ctx); err != nil {
			t.Fatal(err)
		}
		if broken := b.Status().Broken; len(broken) > 0 {
			t.Errorf("named as lost: %+v", broken)
		}
	}
	asked := false
	containerd.committing = func() {
		asked = true
		looks()
	}
	if err := containerd.Commit(b.ctx, "mine", "work"); err != nil || !asked {
		t.Fatalf("%v, asked %v", err, asked)
	}
	if !b.losses.suspected() {
		t.Error("containerd knew no name that is none here") // so this test shows nothing
	}
	looks()
	if !b.losses.none() {
		t.Error("after the commit, something is suspected")
	}
}

// TestLostLoadedIsNamed: an image that came from no registry, and of which containerd has unpacked a layer and dropped the blob, is named
// as broken by its name without anybody's asking for it, over restarts, too, and is whole once it is loaded again.
func TestLostLoadedIsNamed(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			files := []member{file("a", noise(41, 40_000))}
			im := newImage(t, "loaded", nil, f.make(t, files...))
			uses := &released{}
			b := newBed(t, newOrigin(t), func(b *bed) { withBlobs(b); b.opts.Releases = uses })
			uses.all = b.uses(im, ImageName{Namespace: "elsewhere", Name: "x"}, ImageName{Namespace: "default", Name: "example.com/loaded:1"})
			containerd := newDaemon(t, b)
			b.put(im.ConfigDesc, im.Config, nil)
			b.put(im.Target, im.Manifest, map[string]string{configRefLabel: im.ConfigDesc.Digest.String()})
			top := containerd.unpack("default", im, map[int][]member{0: files})
			b.close()
			b.mustRemove(b.root)
			b.open()
			b.Serving()
			named := func() bool {
				all := b.Status().Layers
				return len(all) == 1 && all[0].State == "failed" && all[0].Image == "example.com/loaded:1" && all[0].Reason != ""
			}
			eventually(t, "it is named", named)
			b.restart()
			eventually(t, "it is named after a restart", named)
			b.put(im.Layers[0].Desc, im.Layers[0].Blob, nil)
			containerd.run("default", top, files...)
		})
	}
}
