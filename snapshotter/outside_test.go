package snapshotter

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	fsindex "github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/fs/profile"
	"github.com/remora-storage/remora/internal/memory"
)

// TestPublishedTakesMemory: an index and a profile that are published beside an image are not asked for before there is memory
// for them.
func TestPublishedTakesMemory(t *testing.T) {
	l, _, _ := large(t, gzipLayer)
	im := newImage(t, "app", nil, l)
	packed, err := profile.New(im.Target.Digest, "app", []profile.Entry{entry("/small", []byte("small"))}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	joined := fsindex.Join([][]byte{indexOf(t, l)})
	o := newOrigin(t, im)
	publishApart(t, o, im, profile.Artifact, packed)
	publishApart(t, o, im, fsindex.Artifact, joined)
	m := memory.New(128 << 20)
	b := newBed(t, o, func(b *bed) { b.opts.Layers.Memory = m })
	img := Image{Ref: b.ref(im), Target: im.Target, Repo: b.repo(im)}
	reg := b.registry.(Artifacts)
	for name, c := range map[string]struct {
		content []byte
		get     func(context.Context) (*memory.Share, error)
	}{
		"profile": {packed, func(ctx context.Context) (*memory.Share, error) {
			st := &start{s: b.Snapshotter, img: img}
			p, share, err := st.publishedProfile(ctx, reg)
			if err == nil && len(p.Entries) != 1 {
				t.Errorf("got %+v", p)
			}
			return share, err
		}},
		"index": {joined, func(ctx context.Context) (*memory.Share, error) {
			layers, _, share, err := b.layers.askIndexes(ctx, reg, img)
			if err == nil && layers[l.Digest()] == nil {
				t.Error("the index has not the layer")
			}
			return share, err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			sum := digest.FromBytes(c.content).String()
			o.Forget()
			waitsForMemory(t, m, func() {
				if n := o.Requests("blobs", sum); n > 0 {
					t.Errorf("asked for %d times before there was memory", n)
				}
			}, func() error {
				share, err := c.get(t.Context())
				share.Release()
				return err
			})
			if n := o.Requests("blobs", sum); n != 1 {
				t.Errorf("asked for %d times", n)
			}
		})
	}
	allBack(b, m)
}

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
	img := Image{Ref: b.ref(im), Target: im.Target, Repo: b.repo(im)}
	_, _, _, err := b.layers.askIndexes(b.ctx, b.registry.(Artifacts), img)
	if !errors.Is(err, memory.ErrBeyond) {
		t.Errorf("index: %v", err)
	}
	st := &start{s: b.Snapshotter, img: img}
	if _, _, err := st.publishedProfile(b.ctx, b.registry.(Artifacts)); !errors.Is(err, memory.ErrBeyond) {
		t.Errorf("profile: %v", err)
	}
	b.sees(b.run("container", b.pull(im)), "a", body)
	allBack(b, m)
}

// TestMadeIndexTakesMemory: an index that was made on this node is read once there is memory for all of it.
func TestMadeIndexTakesMemory(t *testing.T) {
	l, small, _ := large(t, gzipLayer)
	im := newImage(t, "app", nil, l)
	m := memory.New(64 << 20)
	b := newBed(t, newOrigin(t, im), func(b *bed) { b.opts.Layers.Memory = m })
	if err := b.layers.indexes.put(l.Digest(), indexOf(t, l)); err != nil {
		t.Fatal(err)
	}
	o := &opening{src: Source{Image: b.ref(im), Repo: b.repo(im), Descriptor: l.Desc, DiffID: l.DiffID}, proof: newProof()}
	waitsForMemory(t, m, func() {}, func() error {
		x, err := b.layers.byMadeIndex(b.ctx, o)
		if err == nil {
			x.share.Release()
		}
		return err
	})
	b.sees(b.run("container", b.pull(im)), "small", small)
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
