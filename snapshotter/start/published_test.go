package start

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// startOf is the start of an image that an origin serves, which has not begun.
func startOf(t *testing.T, o *imagetest.Origin, im *imagetest.Image, m *memory.Budget) *start {
	t.Helper()
	root, log := t.TempDir(), imagetest.LogOf(t)
	c, err := cache.Open(filepath.Join(root, "cache"), cache.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	life, end := context.WithCancel(context.Background())
	reg := layers.Remote{Registry: o.Client(t)}
	l := layers.New(life, root, c, reg, layers.Options{Memory: m, Log: log}, layers.Hooks{})
	s := New(life, root, c, reg, l, Options{Memory: m, Log: log}, Hooks{})
	t.Cleanup(func() {
		end()
		s.Close()
		l.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	repo := registry.Repository{Host: o.Host(), Path: im.Path}
	return &start{s: s, img: layers.Image{Ref: im.Path, Target: im.Target, Repo: repo}}
}

// TestPublishedProfileTakesMemory: a profile that is published beside an image is not asked for before there is memory for it.
func TestPublishedProfileTakesMemory(t *testing.T) {
	im := imagetest.NewImage(t, "app", nil, imagetest.GzipLayer(t, imagetest.File("small", []byte("small"))))
	packed, err := profile.New(im.Target.Digest, "app", []profile.Entry{
		{Path: "/small", Len: 5, Digest: digest.FromString("small"), Runs: 1},
	}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	o := imagetest.NewOrigin(t, im)
	imagetest.PublishApart(t, o, im, profile.Artifact, packed)
	m := memory.New(128 << 20)
	st := startOf(t, o, im, m)
	sum := digest.FromBytes(packed).String()
	imagetest.WaitsForMemory(t, m, func() {
		if n := o.Requests("blobs", sum); n > 0 {
			t.Errorf("asked for %d times before there was memory", n)
		}
	}, func() error {
		p, share, err := st.publishedProfile(t.Context(), st.s.registry.(layers.Artifacts))
		if err == nil && len(p.Entries) != 1 {
			t.Errorf("got %+v", p)
		}
		share.Release()
		return err
	})
	if n := o.Requests("blobs", sum); n != 1 {
		t.Errorf("asked for %d times", n)
	}
}

// TestLargeProfile: a published profile that takes more than all memory is not read.
func TestLargeProfile(t *testing.T) {
	im := imagetest.NewImage(t, "app", nil, imagetest.GzipLayer(t, imagetest.File("a", nil)))
	o := imagetest.NewOrigin(t, im)
	imagetest.Publish(t, o, im, profile.Artifact, imagetest.Noise(3, profile.MaxPacked))
	st := startOf(t, o, im, memory.New(64<<20))
	if _, _, err := st.publishedProfile(t.Context(), st.s.registry.(layers.Artifacts)); !errors.Is(err, memory.ErrBeyond) {
		t.Errorf("got %v", err)
	}
}
