package main

import (
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"github.com/remora-storage/remora/snapshotter"
)

// TestReleaseOfAnother: a name that a client has pulled anew since it was looked at stays. containerd's own store decides.
func TestReleaseOfAnother(t *testing.T) {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	all := metadata.NewImageStore(metadata.NewDB(db, store, nil))
	ctx := namespaces.WithNamespace(t.Context(), "default")
	target := func(of string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(of), Size: 1}
	}
	image := images.Image{Name: "reg.test/app:latest", Target: target("new")}
	if _, err := all.Create(ctx, image); err != nil {
		t.Fatal(err)
	}
	r := &releases{images: all}
	use := &snapshotter.Use{ImageName: snapshotter.ImageName{Namespace: "default", Name: image.Name}, Target: target("old")}
	if removed, err := r.Release(t.Context(), use); removed || err != nil {
		t.Errorf("removed %v, %v", removed, err)
	}
	if _, err := all.Get(ctx, image.Name); err != nil {
		t.Error(err)
	}
	use.Target = target("new")
	for _, want := range []bool{true, false} {
		if removed, err := r.Release(t.Context(), use); removed != want || err != nil {
			t.Errorf("removed %v, %v", removed, err)
		}
	}
}
