package registry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

const artifactType = "application/vnd.example.test"

// documents serves manifests, lists of referrers and blobs by the end of their path.
type documents map[string][]byte

func (d documents) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, old := d["501"]; old && strings.Contains(r.URL.Path, "/referrers/") {
		w.WriteHeader(http.StatusNotImplemented)
		return
	}
	for name, p := range d {
		if !strings.HasSuffix(r.URL.Path, name) {
			continue
		}
		switch {
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		case strings.Contains(r.URL.Path, "/referrers/"):
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
		return
	}
	http.NotFound(w, r)
}

func document(t *testing.T, v any) []byte {
	t.Helper()
	p, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// artifact is a manifest that refers to an image and embeds content, or not.
func artifact(t *testing.T, image digest.Digest, content []byte, embed bool) []byte {
	t.Helper()
	layer := ocispec.Descriptor{MediaType: "text/plain", Digest: digest.FromBytes(content), Size: int64(len(content))}
	if embed {
		layer.Data = content
	}
	return document(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{layer}, Subject: &ocispec.Descriptor{Digest: image},
	})
}

func listOf(t *testing.T, all ...ocispec.Descriptor) []byte {
	t.Helper()
	return document(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: all})
}

func referrer(manifest []byte, created string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)),
		ArtifactType: artifactType, Annotations: map[string]string{ocispec.AnnotationCreated: created}}
}

func registryOf(t *testing.T, h http.Handler) (*registry.Registry, registry.Repository) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	r := registry.New(registry.Options{Retry: registry.Retry{Attempts: 1}})
	return r, registry.Repository{Host: strings.TrimPrefix(server.URL, "http://"), Path: "app"}
}

// TestArtifact finds what is published beside an image, under its tag or by the Referrers API.
func TestArtifact(t *testing.T) {
	image, other := digest.FromString("image"), digest.FromString("other")
	want := []byte("what is published")
	embedded, plain, older := artifact(t, image, want, true), artifact(t, image, want, false), artifact(t, image, []byte("older"), true)
	tag := "manifests/" + registry.ArtifactTag(image, "kind")
	blob := "blobs/" + digest.FromBytes(want).String()
	wrong := artifact(t, image, want, true)
	wrong = bytes.Replace(wrong, []byte(digest.FromBytes(want).Encoded()), []byte(other.Encoded()), 1)
	foreign := referrer(older, "2030-01-01T00:00:00Z")
	foreign.ArtifactType = "application/vnd.else"
	for name, c := range map[string]struct {
		has  documents
		want []byte
		none bool
	}{
		"under its tag, embedded":  {documents{tag: embedded}, want, false},
		"under its tag, as a blob": {documents{tag: plain, blob: want}, want, false},
		"by the API, the newest": {documents{
			"referrers/" + image.String(): listOf(t,
				referrer(older, "2024-01-01T00:00:00Z"), referrer(embedded, "2025-01-01T00:00:00Z"), foreign),
			"manifests/" + digest.FromBytes(embedded).String(): embedded,
			"manifests/" + digest.FromBytes(older).String():    older,
		}, want, false},
		"none":                           {documents{}, nil, true},
		"an empty list":                  {documents{"referrers/" + image.String(): listOf(t)}, nil, true},
		"of another image under the tag": {documents{tag: artifact(t, other, want, true)}, nil, true},
		"no Referrers API":               {documents{"501": nil}, nil, true},
		"other bytes":                    {documents{tag: wrong}, nil, false},
		"no JSON":                        {documents{tag: []byte("hello")}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, repo := registryOf(t, c.has)
			got, err := r.Artifact(t.Context(), repo, image, registry.ArtifactKind{Type: artifactType, Tag: "kind", Limit: 1 << 20}, nil)
			switch {
			case c.want != nil && (err != nil || !bytes.Equal(got, c.want)):
				t.Errorf("got %q, %v", got, err)
			case c.want == nil && err == nil:
				t.Errorf("got %q", got)
			case c.want == nil && errors.Is(err, registry.ErrNotFound) != c.none:
				t.Errorf("not found: %v, want %v: %v", !c.none, c.none, err)
			}
		})
	}
}

// TestManifest reads manifests by one request and refuses what is not what was asked for.
func TestManifest(t *testing.T) {
	doc := document(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest})
	lies := document(t, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex})
	requests := 0
	docs := documents{"manifests/1": doc, "manifests/" + digest.FromBytes(doc).String(): doc,
		"manifests/lies": lies, "manifests/" + digest.FromString("x").String(): doc, "manifests/large": bytes.Repeat([]byte(" "), 5<<20)}
	r, repo := registryOf(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		requests++
		docs.ServeHTTP(w, q)
	}))
	for _, ref := range []string{"1", digest.FromBytes(doc).String()} {
		requests = 0
		desc, got, err := r.Manifest(t.Context(), repo, ref)
		wanted := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
		if err != nil || !bytes.Equal(got, doc) || !reflect.DeepEqual(desc, wanted) || requests != 1 {
			t.Errorf("%s: %+v after %d requests, %v", ref, desc, requests, err)
		}
	}
	for _, ref := range []string{"lies", digest.FromString("x").String(), "large", "none"} {
		if _, _, err := r.Manifest(t.Context(), repo, ref); err == nil {
			t.Errorf("%s was taken", ref)
		}
	}
}

// slowWriter takes some 16 MB a second: loopback alone can be too fast to be measured.
type slowWriter struct{ http.ResponseWriter }

func (w slowWriter) Write(p []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	return w.ResponseWriter.Write(p)
}

// TestLink measures the way to a registry.
func TestLink(t *testing.T) {
	content := bytes.Repeat([]byte("x"), 4<<20)
	const delay = 30 * time.Millisecond
	r, repo := registryOf(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		time.Sleep(delay)
		http.ServeContent(slowWriter{w}, q, "", time.Time{}, bytes.NewReader(content))
	}))
	b := r.Blob(repo, digest.FromBytes(content), int64(len(content)))
	if latency, rate := b.Link(); latency != 0 || rate != 0 {
		t.Errorf("before anything was asked: %s, %d", latency, rate)
	}
	p := make([]byte, len(content))
	for range 3 {
		if _, err := b.ReadAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
	}
	latency, rate := b.Link()
	if latency < delay || latency > time.Second || rate < 1<<20 {
		t.Errorf("got %s and %d bytes a second", latency, rate)
	}
}
