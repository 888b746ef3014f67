package registry_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// TestDeletionRefused: a registry that has no deletion answers 405, and the error says that of the registry. Another refusal is
// told as it is.
func TestDeletionRefused(t *testing.T) {
	for code, allows := range map[int]bool{http.StatusMethodNotAllowed: false, http.StatusForbidden: true} {
		image := digest.FromString("image")
		manifest, none := artifact(t, image, nil, true), listOf(t)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodDelete {
				w.WriteHeader(code)
				return
			}
			if strings.Contains(r.URL.Path, "/referrers/") {
				w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
				_, _ = w.Write(none)
				return
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
			_, _ = w.Write(manifest) // a client that left is not served
		}))
		t.Cleanup(s.Close)
		host := s.Listener.Addr().String()
		toml := strings.Replace(plain(host), `"resolve"`, `"resolve","push"`, 1)
		r := registry.New(registry.Options{ConfigPath: []string{hostsDir(t, "reg.test", toml)}})
		kind := registry.ArtifactKind{Type: artifactType, Tag: "index"}
		err := r.RemoveArtifact(t.Context(), registry.Repository{Host: "reg.test", Path: repo}, image, kind)
		if err == nil || strings.Contains(err.Error(), "does not allow deletion") == allows {
			t.Errorf("the registry answers %d: %v", code, err)
		}
	}
}
