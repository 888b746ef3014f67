package main

import (
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/images"

	"github.com/remora-storage/remora/cmd/internal/cmdtest"
)

// TestConvertInContainerd converts from and to containerd's store, where the garbage collector must find what belongs to the
// result, and nothing else stays.
func TestConvertInContainerd(t *testing.T) {
	u := newUser(t)
	ctrd := cmdtest.NewContainerd(t, u.containerd)
	src := program(t, cmdtest.Docker)
	ctrd.Put(t, "docker.io/library/app:1", src)
	got := decode[convertedImage](u.run("--json", "convert", "containerd:app:1", "containerd:app:lazy"))
	if target := ctrd.Target(t, "docker.io/library/app:lazy"); target.Digest != got.Digest ||
		target.MediaType != images.MediaTypeDockerSchema2Manifest {
		t.Errorf("containerd has %+v, not %s", target, got.Digest)
	}
	ctrd.Collect(t)
	blobs := ctrd.Blobs(t)
	if len(blobs) != 2*len(src.Docs) {
		t.Errorf("%d blobs after a collection, want %d", len(blobs), 2*len(src.Docs))
	}
	for _, l := range got.Layers {
		if !slices.Contains(blobs, l.To) {
			t.Errorf("layer %s was collected", l.To)
		}
	}
	// The name moves to another image.
	again := decode[convertedImage](u.run("--json", "convert", "--annotation", "a=b", "containerd:app:1", "containerd:app:lazy"))
	if ctrd.Target(t, "docker.io/library/app:lazy").Digest != again.Digest || again.Digest == got.Digest {
		t.Errorf("the name stays with %s", got.Digest)
	}
	u.run("convert", "containerd:app:2", "oci:"+u.path("out")+":v1").fails(1, "image docker.io/library/app:2 in namespace default",
		"not found")

	// Of an image that was pulled lazily there are no blobs.
	reg := cmdtest.NewRegistry(t)
	lazy := cmdtest.NewImage(t, cmdtest.OCI, []cmdtest.File{{Path: "x", Data: cmdtest.Noise(7, 50_000)}})
	for _, l := range lazy.Manifest(t).Layers {
		delete(lazy.Docs, l.Digest)
	}
	ctrd.Put(t, "docker.io/library/app:pulled", lazy)
	u.run("convert", "containerd:app:pulled", reg.Ref("app:1")).fails(1, "snapctl fetch")
}

// TestConvertNoContainerd says which socket nobody serves.
func TestConvertNoContainerd(t *testing.T) {
	u := newUser(t)
	u.hurried("convert", "--address", u.path("none.sock"), "containerd:app:1", "oci:"+u.path("out")+":v1").fails(1, u.path("none.sock"))
}
