package registry_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// A shelf is a registry that serves documents by the end of their path, and notes what is deleted.
type shelf struct {
	all map[string][]byte // with "referrers/…" there it has a Referrers API

	mu      sync.Mutex // guards deleted
	deleted []string
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what := strings.TrimPrefix(r.URL.Path, "/v2/app/")
	switch r.Method {
	case http.MethodDelete:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.deleted = append(s.deleted, what)
		w.WriteHeader(http.StatusAccepted)
		return
	case http.MethodPut:
		w.WriteHeader(http.StatusCreated)
		return
	}
	p, ok := s.all[what]
	if !ok {
		http.NotFound(w, r)
		return
	}
	var doc struct{ MediaType string }
	if err := json.Unmarshal(p, &doc); err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", doc.MediaType)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(p).String())
	_, _ = w.Write(p) // or the client is gone
}

// remove removes an image's artifacts from the shelf, and returns what was deleted.
func (s *shelf) remove(t *testing.T, image digest.Digest) ([]string, error) {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	toml := strings.Replace(plain(server.Listener.Addr().String()), `"resolve"`, `"resolve","push"`, 1)
	r := registry.New(registry.Options{ConfigPath: []string{hostsDir(t, "reg.test", toml)}, Retry: registry.Retry{Attempts: 1}})
	kind := registry.ArtifactKind{Type: artifactType, Tag: "kind"}
	err := r.RemoveArtifact(t.Context(), registry.Repository{Host: "reg.test", Path: "app"}, image, kind)
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.deleted)), err
}

// named returns the path of a manifest.
func named(p []byte) string { return "manifests/" + digest.FromBytes(p).String() }

// TestRemoveForged: whoever may push writes the list of what refers to an image, where a registry has no Referrers API, and moves tags.
// What these lead to is deleted only if it is the image's artifact, and never as a blob.
func TestRemoveForged(t *testing.T) {
	image, other := digest.FromString("image"), digest.FromString("other")
	ours, older := artifact(t, image, []byte("ours"), true), artifact(t, image, []byte("older"), true)
	theirs := artifact(t, other, []byte("theirs"), true)
	production := document(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON,
	})
	tag, list := "manifests/"+registry.ArtifactTag(image, "kind"), "manifests/sha256-"+image.Encoded()
	asBlob := referrer(older, "")
	asBlob.MediaType = ocispec.MediaTypeImageLayerGzip
	blob := referrer([]byte("a layer"), "")
	blob.MediaType = ocispec.MediaTypeImageLayerGzip
	for name, c := range map[string]struct {
		tag  []byte
		list []ocispec.Descriptor
		want [][]byte
		says []byte // what stays
	}{
		"honest":           {ours, []ocispec.Descriptor{referrer(ours, ""), referrer(older, "")}, [][]byte{ours, older}, nil},
		"an image listed":  {ours, []ocispec.Descriptor{referrer(production, "2040-01-01T00:00:00Z")}, [][]byte{ours}, production},
		"another's listed": {ours, []ocispec.Descriptor{referrer(theirs, "")}, [][]byte{ours}, theirs},
		"a blob listed":    {ours, []ocispec.Descriptor{blob}, [][]byte{ours}, nil}, // no manifest has its digest
		"listed as a blob": {ours, []ocispec.Descriptor{asBlob}, [][]byte{ours, older}, nil},
		"the tag moved":    {production, []ocispec.Descriptor{referrer(ours, "")}, [][]byte{ours}, production},
		"to another's":     {theirs, []ocispec.Descriptor{referrer(ours, "")}, [][]byte{ours}, theirs},
	} {
		t.Run(name, func(t *testing.T) {
			s := &shelf{all: map[string][]byte{tag: c.tag, list: listOf(t, c.list...)}}
			for _, p := range [][]byte{ours, older, theirs, production} {
				s.all[named(p)] = p
			}
			var want []string
			for _, p := range c.want {
				want = append(want, named(p))
			}
			got, err := s.remove(t, image)
			if !slices.Equal(got, slices.Sorted(slices.Values(want))) {
				t.Errorf("deleted %v, want %v", got, want)
			}
			told := err != nil && strings.Contains(err.Error(), digest.FromBytes(c.says).String()+" stays")
			if told != (c.says != nil) || err != nil && !told {
				t.Errorf("what stays was told: %v, %v", told, err)
			}
		})
	}
}

// TestRemoveMany: all earlier artifacts are deleted, up to a number, and it is said if there are more.
func TestRemoveMany(t *testing.T) {
	image := digest.FromString("image")
	for n, more := range map[int]bool{20: false, 256: false, 257: true} {
		s := &shelf{all: map[string][]byte{}}
		var listed []ocispec.Descriptor
		for i := range n {
			p := artifact(t, image, fmt.Append(nil, i), true)
			s.all[named(p)] = p
			listed = append(listed, referrer(p, ""))
		}
		s.all["referrers/"+image.String()] = listOf(t, listed...)
		s.all["referrers/sha256:"+strings.Repeat("0", 64)] = listOf(t) // by which clients find out that there is the API
		got, err := s.remove(t, image)
		if len(got) != min(n, 256) || (err != nil) != more {
			t.Errorf("%d of %d were deleted, %v", len(got), n, err)
		}
	}
}
