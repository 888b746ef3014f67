package snapshotter

import (
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// indexed puts an image under an index, and that under a tag.
func indexed(t *testing.T, o *origin, im *image, platform ocispec.Platform, tag string) []byte {
	t.Helper()
	desc := im.Target
	desc.Platform = &platform
	doc := encode(t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc},
	})
	o.Document(im.Path, tag, ocispec.MediaTypeImageIndex, doc)
	return doc
}

// TestPrime: before containerd knows of an image, its layers are on their way, and what containerd will ask for is
// here: the documents from the one that the reference names down to the configuration.
func TestPrime(t *testing.T) {
	body := noise(1, 50_000)
	im := newImage(t, "app", nil, estargzLayer(t, file("a", body)))
	o := newOrigin(t, im)
	list := indexed(t, o, im, platforms.DefaultSpec(), "multi")
	for tag, want := range map[string][][]byte{
		"1":                              {im.Manifest, im.Config},
		"multi":                          {list, im.Manifest, im.Config},
		"1@" + im.Target.Digest.String(): {im.Manifest, im.Config},
	} {
		b := newBed(t, o, nil)
		docs, err := b.Prime(b.ctx, "default", o.Host()+"/app:"+tag)
		if err != nil || len(docs) != len(want) {
			t.Fatalf("%s: %d documents, %v", tag, len(docs), err)
		}
		for i, d := range docs {
			if string(d.Data) != string(want[i]) || d.Descriptor.Digest != digest.FromBytes(want[i]) {
				t.Errorf("%s: document %d is %s", tag, i, d.Data)
			}
		}
		eventually(t, "the layer is open", func() bool {
			ids, err := b.cached.IDs()
			return err == nil && len(ids) == 1
		})
		b.sees(b.run("container", b.pull(im)), "a", body)
	}
}

// TestPrimeFails: what is no image for this machine is said to be none.
func TestPrimeFails(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", nil)))
	o := newOrigin(t, im)
	indexed(t, o, im, ocispec.Platform{OS: "plan9", Architecture: "mips"}, "foreign")
	o.Document("app", "empty", ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion": 2}`))
	o.Document("app", "text", ocispec.MediaTypeImageManifest, []byte(`hello`))
	b := newBed(t, o, nil)
	for ref, want := range map[string]string{
		o.Host() + "/app:none":    "404",
		o.Host() + "/app:foreign": "no manifest for",
		o.Host() + "/app:empty":   "not an image with layers",
		o.Host() + "/app:text":    "invalid",
		"::":                      "",
		"app":                     "",
	} {
		docs, err := b.Prime(b.ctx, "default", ref)
		if err == nil || !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), "not found") {
			t.Errorf("%s: %d documents, %v, want %q", ref, len(docs), err, want)
		}
	}
	o.Answer("/manifests/", http.StatusInternalServerError)
	if _, err := b.Prime(b.ctx, "default", b.ref(im)); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("got %v", err)
	}
}

// TestPrimeWithoutConfiguration: containerd asks for a configuration itself that cannot be had, or is wrong.
func TestPrimeWithoutConfiguration(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", nil)))
	for name, data := range map[string][]byte{"none": nil, "another": []byte(strings.Repeat("x", len(im.Config)))} {
		o := newOrigin(t, im)
		o.Serve(im.ConfigDesc.Digest, data)
		b := newBed(t, o, nil)
		docs, err := b.Prime(b.ctx, "default", b.ref(im))
		if err != nil || len(docs) != 1 || string(docs[0].Data) != string(im.Manifest) {
			t.Errorf("%s: %d documents, %v", name, len(docs), err)
		}
	}
}

// TestHostileManifest: layers with digests that are none take nobody down, and are containerd's to refuse.
func TestHostileManifest(t *testing.T) {
	good := estargzLayer(t, file("a", nil))
	for _, d := range []digest.Digest{"", "x", "sha256:", "sha256:../../../etc/passwd", "sha512:abc", ":", "sha256:zz"} {
		bad := good
		bad.Desc.Digest = d
		im := newImage(t, "app", nil, good, bad)
		b := newBed(t, newOrigin(t, im), nil)
		if docs, err := b.Prime(b.ctx, "default", b.ref(im)); err != nil || len(docs) != 2 {
			t.Errorf("%q: %d documents, %v", d, len(docs), err)
		}
		name := b.pull(newImage(t, "app", nil, good))
		b.fetch(im)
		b.decline(im, 1, name)
	}
}
