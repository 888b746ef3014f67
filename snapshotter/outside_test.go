package snapshotter

import (
	"strings"
	"testing"

	fsindex "github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/internal/memory"
)

// TestLargePublications: an index, or a profile, that takes more than all memory is ignored, and its image starts.
func TestLargePublications(t *testing.T) {
	body := noise(1, 5000)
	l := gzipLayer(t, file("a", body))
	im := newImage(t, "app", nil, l)
	o := newOrigin(t, im)
	publish(t, o, im, fsindex.Artifact, noise(2, 32<<20))
	publish(t, o, im, profile.Artifact, noise(3, profile.MaxPacked))
	m := memory.New(64 << 20)
	b := newBed(t, o, func(b *bed) {
		b.opts.Layers.Memory = m
		trusting(b)
	})
	b.sees(b.run("container", b.pull(im)), "a", body)
	allBack(b, m)
}

// TestLargeConfigTakesMemory: a configuration of containerd's content store that is large is decoded once there is memory for it,
// and a usual one does not wait.
func TestLargeConfigTakesMemory(t *testing.T) {
	l := estargzLayer(t, file("a", nil))
	usual := newImage(t, "usual", nil, l)
	im := newImage(t, "app", []string{strings.Repeat("x", 1<<20)}, l)
	m := memory.New(16 << 20)
	b := newBed(t, newOrigin(t, usual, im), func(b *bed) { b.opts.Layers.Memory = m })
	b.fetch(usual)
	b.fetch(im)
	images := NewContentImages(b.store, nil, b.registries, m)
	waitsForMemory(t, m, func() {
		if _, err := images.Manifest(b.ctx, usual.Target.Digest, b.ref(usual)); err != nil {
			t.Error(err)
		}
	}, func() error {
		_, err := images.Manifest(b.ctx, im.Target.Digest, b.ref(im))
		return err
	})
}
