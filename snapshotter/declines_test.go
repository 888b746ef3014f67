package snapshotter

import (
	"context"
	"io"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// countedRegistry answers nothing before it serves, and counts from then on who asks for which blob and has not left.
type countedRegistry struct {
	layers.Registry
	mu     sync.Mutex // guards the fields below
	serves bool
	asked  map[digest.Digest]int
}

func (c *countedRegistry) Blob(repo registry.Repository, desc ocispec.Descriptor) layers.Blob {
	return &countedBlob{c.Registry.Blob(repo, desc), c, desc.Digest}
}

func (c *countedRegistry) ask(ctx context.Context, d digest.Digest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.serves {
		c.mu.Unlock()
		<-ctx.Done()
		c.mu.Lock()
	}
	if ctx.Err() == nil {
		c.asked[d]++
	}
	return ctx.Err()
}

type countedBlob struct {
	layers.Blob
	of *countedRegistry
	d  digest.Digest
}

func (b *countedBlob) Open(ctx context.Context, off, n int64, try int) (io.ReadCloser, error) {
	if err := b.of.ask(ctx, b.d); err != nil {
		return nil, err
	}
	return b.Blob.Open(ctx, off, n, try)
}

func (b *countedBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := b.of.ask(ctx, b.d); err != nil {
		return 0, err
	}
	return b.Blob.ReadAt(ctx, p, off)
}

// TestDeclinedOnce: once a layer was declined since it was not proven in time, nobody asks for it, or for those above it,
// beside containerd, but for an index of the one that is prepared. What containerd has stored of them is used.
func TestDeclinedOnce(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			im := newImage(t, "app", nil, f.make(t, file("a", honest)), f.make(t, file("b", honest)), f.make(t, file("c", honest)))
			reg := &countedRegistry{asked: map[digest.Digest]int{}}
			b := newBed(t, newOrigin(t, im), func(b *bed) {
				withBlobs(b)
				reg.Registry, b.registry, b.opts.Layers.ProofWait = b.registry, reg, claimWait
			})
			b.fetch(im)
			b.decline(im, 0, "")
			mounts, err := b.Prepare(b.ctx, "unpack", "")
			if err != nil {
				t.Fatal(err)
			}
			b.unpack("unpack", "below", mounts, file("a", honest))
			b.layers.Proofs.Forgive()
			reg.mu.Lock()
			reg.serves = true
			reg.mu.Unlock()
			if _, err := b.prepare(im, 1, "below"); f.whole && err != nil || err != nil && !errdefs.IsAlreadyExists(err) {
				t.Errorf("got %v", err)
			}
			b.put(im.Layers[1].Desc, im.Layers[1].Blob, b.from(im))
			eventually(t, "what is stored is claimed", func() bool {
				_, err := b.prepare(im, 1, "below")
				return errdefs.IsAlreadyExists(err)
			})
			reg.mu.Lock()
			defer reg.mu.Unlock()
			for i, l := range im.Layers {
				if n := reg.asked[l.Digest()]; n > 0 && (i != 1 || f.whole) {
					t.Errorf("layer %d was asked for %d times", i, n)
				}
			}
		})
	}
}
