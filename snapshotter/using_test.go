package snapshotter

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// named are images of a namespace.
type named []images.Image

func (n named) List(context.Context, ...string) ([]images.Image, error) { return n, nil }

// TestUsing: which images have a layer, and where each came from; one whose index can never be read holds itself alone.
func TestUsing(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", noise(1, 1000))))
	other := newImage(t, "other", nil, gzipLayer(t, file("a", noise(2, 1000))))
	b := newBed(t, newOrigin(t, im, other), nil)
	b.fetch(im)
	b.fetch(other)
	var all named
	add := func(name string, target ocispec.Descriptor) {
		all = append(all, images.Image{Name: name, Target: target})
	}
	index := func(name string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(data), Size: int64(len(data))}
		b.put(d, data, nil)
		add(name, d)
		return d
	}
	manifests := func(of ...ocispec.Descriptor) []byte {
		p, err := json.Marshal(ocispec.Index{Manifests: of})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	bad := index("unread/nonsense", []byte("{"))
	index("unread/large", append(bytes.Repeat([]byte(" "), maxManifest), manifests(other.Target)...))
	index("unread/many", manifests(slices.Repeat([]ocispec.Descriptor{other.Target}, maxManifests+1)...))
	index("unread/below", manifests(other.Target, bad))
	index("has/below", manifests(bad, im.Target))
	index("none/index", manifests(other.Target))
	add("has/plain", im.Target)
	add("none/plain", other.Target)
	add("none/away", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromString("away"), Size: 4})
	uses, err := NewContentImages(b.store, all, b.registries, nil).Using(b.ctx, "default", im.ChainIDs[0])
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, use := range uses {
		got = append(got, use.Name)
		has, unread := strings.HasPrefix(use.Name, "has/"), strings.HasPrefix(use.Name, "unread/")
		if (use.Unread != "") != unread || use.Target.Digest == "" || has != (len(use.From) == 1) {
			t.Errorf("%+v", use)
		}
		if has && (use.From[0].Repo != b.repo(im) || use.From[0].Manifest != im.Target.Digest ||
			use.From[0].Config.Digest != im.ConfigDesc.Digest || use.From[0].Descriptor.Digest != im.Layers[0].Digest()) {
			t.Errorf("%s came from %+v", use, use.From)
		}
	}
	if want := []string{"unread/nonsense", "unread/large", "unread/many", "unread/below", "has/below", "has/plain"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
