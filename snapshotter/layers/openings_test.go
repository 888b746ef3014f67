package layers

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/cache"
	fsindex "github.com/remora-storage/remora/fs/index"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/internal/memorytest"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// newOf makes the layers of a new root over an origin. Their end checks the cache.
func newOf(t *testing.T, o *imagetest.Origin, opts Options) *Layers {
	t.Helper()
	root, log := t.TempDir(), imagetest.LogOf(t)
	c, err := cache.Open(filepath.Join(root, "cache"), cache.Options{Memory: opts.Memory, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	opts.Log = log
	if opts.Formats == nil {
		opts.Formats = imagetest.Formats
	}
	life, end := context.WithCancel(context.Background())
	l := New(life, root, c, Remote{o.Client(t)}, opts, Hooks{})
	t.Cleanup(func() {
		end()
		l.Close()
		if err := errors.Join(c.Check(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// sourceOf is the only layer of an image that an origin serves.
func sourceOf(o *imagetest.Origin, im *imagetest.Image) Source {
	l := im.Layers[0]
	return Source{Image: im.Path, Repo: registry.Repository{Host: o.Host(), Path: im.Path}, Descriptor: l.Desc, DiffID: l.DiffID}
}

// imageOf is an image as its start knows it.
func imageOf(o *imagetest.Origin, im *imagetest.Image) Image {
	return Image{Ref: im.Path, Target: im.Target, Repo: registry.Repository{Host: o.Host(), Path: im.Path}}
}

// TestAbandoned: of an opening that nobody waits for nothing is left, and the host is known to be slow.
func TestAbandoned(t *testing.T) {
	for name, make := range map[string]func(testing.TB, ...imagetest.Member) imagetest.Layer{
		"indexed": imagetest.EstargzLayer, "imported": imagetest.GzipLayer,
	} {
		t.Run(name, func(t *testing.T) {
			im := imagetest.NewImage(t, "app", nil, make(t, imagetest.File("a", imagetest.Noise(1, 5000))))
			o := imagetest.NewOrigin(t, im)
			l := newOf(t, o, Options{ProofWait: 20 * time.Millisecond})
			defer o.Silence("/blobs/")()
			src := sourceOf(o, im)
			opening := l.Open(src)
			if err := l.Proofs.Await(t.Context(), opening, 0); !errors.Is(err, ErrUnproven) || !errors.Is(err, ErrNotLazy) {
				t.Errorf("got %v", err)
			}
			l.Abandon(&src)
			<-opening.Done()
			l.mu.Lock()
			left := len(l.openings)
			l.mu.Unlock()
			if left != 0 {
				t.Errorf("%d openings go on", left)
			}
			if err := l.Proofs.Failing(src.Repo); !errors.Is(err, ErrUnproven) {
				t.Errorf("of the host is known: %v", err)
			}
		})
	}
}

// TestPublishedIndexTakesMemory: an index that is published beside an image is not asked for before there is memory for it.
func TestPublishedIndexTakesMemory(t *testing.T) {
	layer, _, _ := imagetest.Large(t, imagetest.GzipLayer)
	im := imagetest.NewImage(t, "app", nil, layer)
	o := imagetest.NewOrigin(t, im)
	joined := fsindex.Join([][]byte{imagetest.IndexOf(t, layer)})
	imagetest.PublishApart(t, o, im, fsindex.Artifact, joined)
	m := memory.New(128 << 20)
	l := newOf(t, o, Options{Memory: m})
	sum := digest.FromBytes(joined).String()
	imagetest.WaitsForMemory(t, m, func() {
		if n := o.Requests("blobs", sum); n > 0 {
			t.Errorf("asked for %d times before there was memory", n)
		}
	}, func() error {
		all, _, share, err := l.Indexes.ask(t.Context(), l.Places.registry.(Artifacts), imageOf(o, im))
		if err == nil && all[layer.Digest()] == nil {
			t.Error("the index has not the layer")
		}
		share.Release()
		return err
	})
	if n := o.Requests("blobs", sum); n != 1 {
		t.Errorf("asked for %d times", n)
	}
}

// TestLargeIndex: a published index that takes more than all memory is not read.
func TestLargeIndex(t *testing.T) {
	im := imagetest.NewImage(t, "app", nil, imagetest.GzipLayer(t, imagetest.File("a", nil)))
	o := imagetest.NewOrigin(t, im)
	imagetest.Publish(t, o, im, fsindex.Artifact, imagetest.Noise(2, 32<<20))
	l := newOf(t, o, Options{Memory: memory.New(64 << 20)})
	if _, _, _, err := l.Indexes.ask(t.Context(), l.Places.registry.(Artifacts), imageOf(o, im)); !errors.Is(err, memory.ErrBeyond) {
		t.Errorf("got %v", err)
	}
}

// TestMadeIndexTakesMemory: an index that was made on this node is read once there is memory for all of it, and gives that back.
func TestMadeIndexTakesMemory(t *testing.T) {
	layer, _, _ := imagetest.Large(t, imagetest.GzipLayer)
	im := imagetest.NewImage(t, "app", nil, layer)
	o := imagetest.NewOrigin(t, im)
	m := memory.New(64 << 20)
	l := newOf(t, o, Options{Memory: m})
	if err := l.Indexes.put(layer.Digest(), imagetest.IndexOf(t, layer)); err != nil {
		t.Fatal(err)
	}
	imagetest.WaitsForMemory(t, m, func() {}, func() error {
		x, err := l.Indexes.byMadeIndex(t.Context(), &Opening{src: sourceOf(o, im), proof: newProof()})
		if err == nil {
			x.share.Release()
		}
		return err
	})
	giveBack, err := memorytest.Spend(t.Context(), m)
	if err != nil {
		t.Errorf("memory is still in use: %v", err)
	}
	giveBack()
}
