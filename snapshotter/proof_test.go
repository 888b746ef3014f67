package snapshotter

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/snapshotter/layers"
)

// TestProvenSideBySide: an image of more layers than are read at once is claimed whole though none of them ever ends: each is proven
// by a request of its own.
func TestProvenSideBySide(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			all := make([]layer, 20)
			for i := range all {
				all[i] = f.make(t, file(fmt.Sprint(i), noise(uint64(i), 3000)))
			}
			im := newImage(t, "app", nil, all...)
			o := newOrigin(t, im)
			b := newBed(t, o, func(b *bed) { b.opts.ImportWait = time.Millisecond })
			defer o.Hold("/blobs/")()
			b.pull(im)
		})
	}
}

// TestUnproven: what a registry does not show is declined, and the next layers have little time. Once it serves us,
// layers are claimed again.
func TestUnproven(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			one, other := newImage(t, "one", nil, f.make(t, file("a", honest))), newImage(t, "other", nil, f.make(t, file("b", honest)))
			o := newOrigin(t, one, other)
			b := newBed(t, o, func(b *bed) { b.opts.Layers.ProofWait = claimWait })
			release := o.Silence("/blobs/")
			defer release()
			b.fetch(one)
			b.decline(one, 0, "")
			if known := b.layers.Proofs.Failing(b.repo(other)); !errors.Is(known, layers.ErrUnproven) {
				t.Errorf("of the host is known: %v", known)
			}
			release()
			b.fetch(other)
			b.resolve(other)
			b.sees(b.run("container", b.pull(other)), "b", honest)
			if known := b.layers.Proofs.Failing(b.repo(one)); known != nil {
				t.Errorf("the host serves again, but of it is known: %v", known)
			}
		})
	}
}

// TestStoredProvesNothing: that a layer was read from containerd's content store says nothing of its registry: of one that hangs, the next
// layers go on having little time.
func TestStoredProvesNothing(t *testing.T) {
	l := gzipLayer(t, file("a", honest))
	one, here := newImage(t, "one", nil, l), newImage(t, "here", nil, gzipLayer(t, file("b", honest)))
	o := newOrigin(t, one, here)
	b := newBed(t, o, func(b *bed) { withBlobs(b); b.opts.Layers.ProofWait = claimWait })
	defer o.Silence("/blobs/")()
	b.fetch(one)
	b.decline(one, 0, "")
	b.fetch(here)
	b.put(here.Layers[0].Desc, here.Layers[0].Blob, b.from(here))
	b.sees(b.run("container", b.pull(here)), "b", honest)
	if known := b.layers.Proofs.Failing(b.repo(one)); !errors.Is(known, layers.ErrUnproven) {
		t.Errorf("of the host is known: %v", known)
	}
}

// TestLabelsThatLie: a layer is read as what its bytes say that it is, as containerd does, whatever its media type says.
func TestLabelsThatLie(t *testing.T) {
	const docker = "application/vnd.docker.image.rootfs.diff.tar"
	for _, c := range []struct {
		is, says string
		make     func(testing.TB, ...member) layer
	}{
		{"tar", ocispec.MediaTypeImageLayerGzip, tarLayer},
		{"tar", docker + ".gzip", tarLayer},
		{"zstd", ocispec.MediaTypeImageLayerGzip, zstdLayer},
		{"gzip", docker, gzipLayer},
		{"gzip", ocispec.MediaTypeImageLayerZstd, gzipLayer},
		{"tar", ocispec.MediaTypeImageLayerZstd, tarLayer},
	} {
		t.Run(c.is+" as "+c.says, func(t *testing.T) {
			l := c.make(t, file("a", honest), file("b", noise(3, 100_000)))
			l.Desc.MediaType = c.says
			im := newImage(t, "app", nil, l)
			b := newBed(t, newOrigin(t, im), nil)
			b.sees(b.run("container", b.pull(im)), "a", honest)
		})
	}
	t.Run("gzip as OCI's plain archive", func(t *testing.T) { // which containerd does not unpack either
		l := gzipLayer(t, file("a", honest))
		l.Desc.MediaType = ocispec.MediaTypeImageLayer
		im := newImage(t, "app", nil, l)
		b := newBed(t, newOrigin(t, im), nil)
		b.fetch(im)
		if mounts, err := b.prepare(im, 0, ""); errdefs.IsAlreadyExists(err) || len(mounts) == 0 {
			t.Errorf("got %v, %v", mounts, err)
		}
	})
}

// TestNoLayer: a blob that begins like no layer is declined though the rest of it never comes.
func TestNoLayer(t *testing.T) {
	l := gzipLayer(t, file("a", honest))
	o := newOrigin(t)
	l.Blob = []byte(strings.Repeat("<html>please log in</html>", 1000))
	l.Desc.Size = int64(len(l.Blob))
	im := newImage(t, "app", nil, l)
	o.Add(im)
	defer o.Hold("/blobs/")()
	b := newBed(t, o, nil)
	b.fetch(im)
	b.decline(im, 0, "")
}

// TestKeptBytesProveNothing: what is left of an import that was ended does not show that the registry still has the layer.
func TestKeptBytesProveNothing(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", noise(1, 300_000))))
	o := newOrigin(t, im)
	b := newBed(t, o, nil)
	release := goneBlobs(o, "app", http.StatusNotFound)
	layer := b.pull(im)
	release()
	b.fails(im)
	if err := errors.Join(b.Remove(b.ctx, layer), b.Cleanup(b.ctx)); err != nil {
		t.Fatal(err)
	}
	b.opts.Layers.ProofWait = 100 * time.Millisecond
	b.restart()
	silence := o.Silence("/blobs/")
	b.decline(im, 0, "")
	silence()
	if o.Requests("blobs", im.Layers[0].Digest().String()) == 0 {
		t.Error("the registry was not asked")
	}
}
