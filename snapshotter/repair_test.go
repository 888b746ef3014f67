package snapshotter

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// repaired returns what Repair says of an image's layers, the images that it removed, and its error.
func (b *bed) repaired(im *image, release bool) (layers []Repaired, removed []ImageName, err error) {
	err = b.Repair(b.ctx, b.ref(im), release, func(r Repaired) { layers = append(layers, r) },
		func(n ImageName) { removed = append(removed, n) })
	return layers, removed, err
}

// TestRepair: layers that could not be opened, or turned out wrong, are whole afterwards if anybody has them; if nobody has, it says so,
// and removes the images if it may.
func TestRepair(t *testing.T) {
	body := noise(1, 300_000)
	t.Run("incomplete", func(t *testing.T) {
		im := newImage(t, "app", nil, estargzLayer(t, file("a", body), file("b", noise(2, 200_000))))
		b := newBed(t, newOrigin(t, im), nil)
		b.run("container", b.pull(im))
		if layers, _, err := b.repaired(im, false); err != nil || len(layers) != 1 || layers[0].Reason != "" {
			t.Fatalf("%+v, %v", layers, err)
		}
		b.origin.Answer("/blobs/", http.StatusNotFound)
		b.sees(b.run("again", b.named(im.ChainIDs[0], "")), "b", noise(2, 200_000))
	})
	t.Run("failed", func(t *testing.T) {
		im := newImage(t, "app", nil, gzipLayer(t, file("a", body)))
		b := newBed(t, newOrigin(t, im), nil)
		release := goneBlobs(b.origin, "app", http.StatusServiceUnavailable)
		name := b.pull(im)
		release()
		if layers, _, err := b.repaired(im, true); err == nil || len(layers) != 1 || layers[0].Reason == "" || layers[0].Gone {
			t.Errorf("during the outage: %+v, %v", layers, err)
		}
		b.origin.SetFault(nil)
		if layers, _, err := b.repaired(im, true); err != nil || len(layers) != 1 || layers[0].Reason != "" {
			t.Errorf("after it: %+v, %v", layers, err)
		}
		b.sees(b.run("container", name), "a", body)
	})
	t.Run("quarantined", func(t *testing.T) {
		right, wrong := gzipLayer(t, file("a", body)), gzipLayer(t, file("a", noise(3, 300_000)))
		config := ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"liar"}}}
		config.RootFS.Type, config.RootFS.DiffIDs = "layers", []digest.Digest{right.DiffID}
		liar := imageOf(t, "liar", config, wrong)
		honest := newImage(t, "honest", nil, right)
		b := newBed(t, newOrigin(t, liar, honest), nil)
		name := b.pull(liar)
		if err := b.mountings.ensure(b.ctx, b.bindings.get(b.id(name))); err == nil || b.statusOf(wrong).State != "quarantined" {
			t.Fatalf("%+v, %v", b.statusOf(wrong), err)
		}
		if layers, _, err := b.repaired(liar, false); err == nil || layers[0].Gone {
			t.Errorf("while nobody has it: %+v, %v", layers, err)
		}
		b.fetch(honest)
		if layers, _, err := b.repaired(liar, false); err != nil {
			t.Errorf("%+v, %v", layers, err)
		}
		b.sees(b.run("container", name), "a", body)
	})
	t.Run("gone", func(t *testing.T) {
		im := newImage(t, "app", nil, gzipLayer(t, file("a", body)))
		names := []ImageName{{Namespace: "default", Name: "app:1"}}
		r := &released{}
		b := newBed(t, newOrigin(t, im), func(b *bed) {
			r.all = b.uses(im, names...)
			b.opts.Releases, b.opts.ReleaseAsk, b.opts.GoneFor = r, true, time.Nanosecond
		})
		release := goneBlobs(b.origin, "app", http.StatusNotFound)
		name := b.pull(im)
		release()
		for range 3 {
			if err := b.mountings.ensure(b.ctx, b.bindings.get(b.id(name))); err == nil {
				t.Fatal("it is there")
			}
		}
		if layers, removed, err := b.repaired(im, false); err == nil || len(layers) != 1 || !layers[0].Gone || len(removed) > 0 {
			t.Errorf("%+v, removed %v, %v", layers, removed, err)
		}
		if got := r.names(); len(got) > 0 {
			t.Errorf("removed without a word: %v", got)
		}
		if layers, removed, err := b.repaired(im, true); err != nil || !layers[0].Gone || !slices.Equal(removed, names) {
			t.Errorf("%+v, removed %v, %v", layers, removed, err)
		}
	})
	t.Run("claimed by another image", func(t *testing.T) {
		l := gzipLayer(t, file("a", body))
		first, second := newImage(t, "first", nil, l), newImage(t, "second", nil, l)
		r := &released{}
		b := newBed(t, newOrigin(t, first, second), func(b *bed) {
			r.all = append(b.uses(first, ImageName{Namespace: "default", Name: b.ref(first)}),
				b.uses(second, ImageName{Namespace: "default", Name: b.ref(second)})...)
			b.opts.Releases = r
		})
		b.pull(first)
		b.fetch(second)
		if layers, _, err := b.repaired(second, false); err != nil || len(layers) != 1 || layers[0].Digest != l.Digest() {
			t.Errorf("%+v, %v", layers, err)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		im := newImage(t, "app", nil, gzipLayer(t, file("a", body)))
		b := newBed(t, newOrigin(t, im), nil)
		if _, _, err := b.repaired(im, true); err == nil {
			t.Error("an image that is not here is repaired")
		}
	})
}
