package snapshotter

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestLostLayerRecord: a snapshot whose layer.json is damaged or gone shows its layer again once somebody mounts it, from what containerd
// says that it is made of, between the layers that it lies between, and over restarts.
func TestLostLayerRecord(t *testing.T) {
	for _, f := range formats {
		for _, h := range harms(nil) {
			if h.Name != "removed" && h.Name != "cut" && f.name != "gzip" {
				continue // each with one format
			}
			t.Run(f.name+"/"+h.Name, func(t *testing.T) {
				x := newTwoImages(t, f)
				for _, l := range []layer{x.first.Layers[0], x.second.Layers[2]} {
					name := x.boundTo(l)
					path := filepath.Join(x.snapshotDir(x.id(name)), bindingFile)
					x.close()
					h.Do(t, path)
					x.open()
					aside := x.mustName(path)
					mounts, err := x.View(x.ctx, "view-"+uniqueSuffix(), name) // whoever mounts this waits at the gates
					if err != nil {
						t.Fatal(err)
					}
					x.sees(mounts, "d/low", honest)
					x.runBoth()
					if st := x.statusOf(l); st.State != "mounted" || st.Snapshot != name || !st.Verified {
						t.Errorf("status: %+v", st)
					}
					x.restart()
					x.runBoth()
					x.mustName(path) // until an operator has seen it
					x.mustRemove(aside)
				}
			})
		}
	}
}

// TestLostLayerRecordOfUnpacked: so does one whose layer is not for any image, and has to be unpacked.
func TestLostLayerRecordOfUnpacked(t *testing.T) {
	low := gzipLayer(t, dir("d", 0o755), file("d/low", honest))
	im := newImage(t, "app", nil, low, gzipLayer(t, file("d/new", noise(2, 300_000)), device("odd")))
	b := newBed(t, newOrigin(t, im), nil)
	containerd := newDaemon(t, b)
	b.restart()
	release := b.origin.Hold("/blobs/")
	top := containerd.pull("default", im, nil)
	release()
	want := []member{file("d/low", honest), file("d/new", noise(2, 300_000))}
	containerd.run("default", top, want...)
	name := b.boundTo(im.Layers[1])
	path := filepath.Join(b.snapshotDir(b.id(name)), bindingFile)
	b.close()
	b.mustRemove(path)
	b.open()
	containerd.run("default", top, want...)
	if st := b.statusOf(im.Layers[1]); st.Backend != "unpacked" || st.Snapshot != name {
		t.Errorf("status: %+v", st)
	}
	b.restart()
	containerd.run("default", top, want...)
}

// TestLostLayerRecordGone: one that nobody has any more is released, and stays named until then.
func TestLostLayerRecordGone(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", honest)))
	r := &released{}
	b := newBed(t, newOrigin(t, im), func(b *bed) { b.opts.Releases, b.opts.GoneFor = r, time.Nanosecond })
	name := ImageName{Namespace: "default", Name: "app:1"}
	r.all = b.uses(im, name)
	containerd := newDaemon(t, b)
	b.restart()
	containerd.pull("default", im, nil)
	bound := b.boundTo(im.Layers[0])
	path := filepath.Join(b.snapshotDir(b.id(bound)), bindingFile)
	b.close()
	b.mustRemove(path)
	b.mustRemove(filepath.Join(b.root, "cache"))
	blob := "/blobs/" + im.Layers[0].Digest().String()
	b.origin.Answer(blob, http.StatusServiceUnavailable)
	b.open()
	if _, err := b.Prepare(b.ctx, "container", bound); err != nil {
		t.Fatal(err)
	}
	fails := func() {
		t.Helper()
		if _, err := b.Mounts(b.ctx, "container"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("mounts: %v", err)
		}
	}
	fails()
	if st := b.statusOf(im.Layers[0]); st.State != "quarantined" || !strings.Contains(st.Image, "/app@") {
		t.Errorf("status: %+v", st)
	}
	b.origin.Answer(blob, http.StatusNotFound)
	fails()
	b.remove("container")
	eventually(t, "the image is released", func() bool { return slices.Equal(r.names(), []ImageName{name}) })
	b.remove(bound)
}

// TestQuarantineFilledAnew: a snapshot whose image lied shows the layer that its chainID promises once an image has that, with nobody's
// help, and nothing before; what is wrong is not read again for each try.
func TestQuarantineFilledAnew(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			right, wrong := f.make(t, file("a", honest)), f.make(t, file("a", forged))
			config := ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"liar"}}}
			config.RootFS.Type, config.RootFS.DiffIDs = "layers", []digest.Digest{right.DiffID}
			liar := imageOf(t, "liar", config, wrong)
			im := newImage(t, "honest", nil, right)
			b := newBed(t, newOrigin(t, liar, im), beforeUse)
			containerd := newDaemon(t, b)
			b.restart()
			top := containerd.pull("default", liar, nil)
			ctx := namespaces.WithNamespace(t.Context(), "default")
			if _, err := containerd.Prepare(ctx, "container", top); err != nil {
				t.Fatal(err)
			}
			var asked int
			for i := range 4 {
				if _, err := containerd.Mounts(ctx, "container"); err == nil {
					t.Fatal("it was mounted")
				}
				if st := b.statusOf(wrong); st.State != "quarantined" {
					t.Errorf("status: %+v", st)
				}
				n := b.origin.Requests("blobs", wrong.Digest().String())
				if i > 1 && n != asked {
					t.Errorf("try %d asks the registry for what is wrong", i)
				}
				asked = n
			}
			containerd.pull("default", im, nil) // all of it "exists already"
			b.restart()                         // nobody waits for an hour
			containerd.run("default", top, file("a", honest))
			if st := b.statusOf(right); st.State != "mounted" || !st.Verified || !strings.Contains(st.Image, "/honest@") {
				t.Errorf("status: %+v", st)
			}
		})
	}
}

// TestFilledAnewApart: what another namespace has is shown to nobody who claims its chainID by bytes of his own: neither once his snapshot
// is quarantined, nor when its record is lost. Then each namespace's snapshot is filled from its own images.
func TestFilledAnewApart(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			private, bait := f.make(t, file("a", honest)), f.make(t, file("a", forged))
			var config ocispec.Image
			config.RootFS.DiffIDs = []digest.Digest{private.DiffID}
			im, liar := newImage(t, "private", nil, private), imageOf(t, "liar", config, bait)
			b := newBed(t, newOrigin(t, im, liar), beforeUse)
			containerd := newDaemon(t, b)
			b.store = containerd.db.ContentStore() // each namespace has its own there
			b.restart()
			top := containerd.pull("default", im, nil)
			containerd.run("default", top, file("a", honest))
			b.ctx = namespaces.WithNamespace(t.Context(), "thieves")
			containerd.pull("thieves", liar, nil)
			stolen, name := b.boundTo(bait), b.boundTo(private)
			if _, err := b.Prepare(b.ctx, "container", stolen); err != nil {
				t.Fatal(err)
			}
			fails := func() {
				t.Helper()
				for range 3 {
					if mounts, err := b.Mounts(b.ctx, "container"); err == nil {
						got, err := b.look(mounts, "a")
						t.Fatalf("it was mounted, with %d bytes, which are the private ones: %v, %v", len(got), string(got) == string(honest), err)
					}
					if st := b.statusOf(bait); st.State != "quarantined" {
						t.Errorf("status: %+v", st)
					}
				}
			}
			fails()
			b.restart()
			fails()
			dirs := []string{b.snapshotDir(b.id(stolen)), b.snapshotDir(b.id(name))}
			b.close()
			for _, dir := range dirs {
				b.mustRemove(filepath.Join(dir, bindingFile))
			}
			b.open()
			if mounts, err := b.Mounts(b.ctx, "container"); err == nil {
				t.Errorf("without its record, it was mounted: %v", mounts)
			}
			fails()
			containerd.run("default", top, file("a", honest))
			b.remove("container", stolen)
		})
	}
}
