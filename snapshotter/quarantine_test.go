package snapshotter

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// lying makes an image whose configuration promises other content than its only layer has.
func lying(t *testing.T, path string, l layer) *image {
	t.Helper()
	var config ocispec.Image
	config.RootFS.DiffIDs = []digest.Digest{digest.FromString("something else")}
	return imageOf(t, path, config, l)
}

// beforeUse has every layer checked before its first mount.
func beforeUse(b *bed) {
	b.opts.Layers.TrustOf = func(registry.Repository) layers.TrustPolicy { return layers.TrustPolicy{BeforeUse: true} }
}

// TestQuarantine: a layer that is not what the image's configuration promises is never mounted for that image, over
// restarts; an image that promises what the layer is has the use of it.
func TestQuarantine(t *testing.T) {
	body := noise(1, 20_000)
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			l := f.make(t, file("a", body))
			bad, good := lying(t, "bad", l), newImage(t, "good", nil, l)
			b := newBed(t, newOrigin(t, bad, good), beforeUse)
			name := b.pull(bad)
			if _, err := b.Prepare(b.ctx, "container", name); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if mounts, err := b.Mounts(b.ctx, "container"); err == nil {
					t.Fatalf("it was mounted: %v", mounts)
				}
				st := b.statusOf(l)
				if st.State != "quarantined" || !strings.Contains(st.Reason, "diffID") || !strings.Contains(st.Reason, b.ref(bad)) || st.Backend != "" {
					t.Errorf("status: %+v", st)
				}
				b.restart()
			}
			b.decline(bad, 0, "")
			b.sees(b.run("good", b.pull(good)), "a", body)
			if _, err := b.Mounts(b.ctx, "container"); err == nil {
				t.Error("the good image's layer is mounted for the bad one")
			}
			b.remove("container", name)
			if st := b.statusOf(l); st.State != "mounted" || !st.Verified {
				t.Errorf("status: %+v", st)
			}
		})
	}
}

// TestQuarantineLeavesOthers: an image that lies about a layer takes it from nobody who has it.
func TestQuarantineLeavesOthers(t *testing.T) {
	body := noise(2, 20_000)
	l := gzipLayer(t, file("a", body))
	bad, good := lying(t, "bad", l), newImage(t, "good", nil, l)
	b := newBed(t, newOrigin(t, bad, good), nil)
	mounts := b.run("good", b.pull(good))
	if _, err := b.Prepare(b.ctx, "bad", b.pull(bad)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Mounts(b.ctx, "bad"); err == nil {
		t.Error("it was mounted")
	}
	b.sees(mounts, "a", body)
	b.restart()
	if _, err := b.Mounts(b.ctx, "bad"); err == nil {
		t.Error("it was mounted after a restart")
	}
	b.sees(mounts, "a", body)
}

// TestBeforeUse: a layer that is checked before its first use is whole by then, and the kernel reads it itself.
func TestBeforeUse(t *testing.T) {
	body := noise(3, 200_000)
	l := estargzLayer(t, file("a", body), file("b", noise(4, 1000)))
	b := newBed(t, newOrigin(t, newImage(t, "app", nil, l)), beforeUse)
	mounts := b.run("container", b.pull(newImage(t, "app", nil, l)))
	b.origin.Close()
	if st := b.statusOf(l); !st.Verified || st.Backend != "direct" || st.Present != st.Data {
		t.Errorf("status: %+v", st)
	}
	b.sees(mounts, "a", body)
}
