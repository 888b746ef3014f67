package registry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// inbox is a registry that takes pushes of whoever shows a token that it has just made. Each token serves one request.
type inbox struct {
	*httptest.Server
	mu      sync.Mutex // guards the fields below
	held    map[string][]byte
	token   int
	spent   bool
	refused int // requests, those with bodies among them
	bodies  int
}

func newInbox(t *testing.T) *inbox {
	b := &inbox{held: map[string][]byte{}, spent: true}
	b.Server = httptest.NewServer(b)
	t.Cleanup(b.Close)
	return b
}

func (b *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.URL.Path == "/token" {
		b.token, b.spent = b.token+1, false
		token := fmt.Sprint("token-", b.token)
		_ = json.NewEncoder(w).Encode(map[string]string{"token": token, "access_token": token})
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if r.Header.Get("Operator") != "us" {
		w.WriteHeader(http.StatusTeapot) // the headers of hosts.toml are missing
		return
	}
	if b.spent || r.Header.Get("Authorization") != fmt.Sprint("Bearer token-", b.token) {
		b.refused++
		if len(body) > 0 {
			b.bodies++
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(
			`Bearer realm="%s/token",service="inbox",scope="repository:app:pull,push",error="invalid_token"`, b.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	b.spent = true
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	switch {
	case r.Method == http.MethodPost:
		w.Header().Set("Location", "/v2/app/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/uploads/"):
		b.held[r.URL.Query().Get("digest")] = body
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPut:
		b.held[name] = body
		w.Header().Set("OCI-Subject", "sha256:"+strings.Repeat("0", 64))
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
		w.WriteHeader(http.StatusCreated)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// TestPushShowsTokens: a request with a body that is refused for its token is sent again, whole, with another.
func TestPushShowsTokens(t *testing.T) {
	b := newInbox(t)
	host := b.Listener.Addr().String()
	toml := fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\",\"resolve\",\"push\"]\n  [host.%[1]q.header]\n    Operator = \"us\"\n", b.URL)
	reg := registry.New(registry.Options{ConfigPath: []string{hostsDir(t, host, toml)}})
	content := bytes.Repeat([]byte("content"), 10_000)
	image := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("image"), Size: 5}
	kind := registry.ArtifactKind{Type: artifactType, MediaType: "text/plain", Tag: "test", Limit: 1 << 20}
	p, err := reg.PushArtifact(t.Context(), registry.Repository{Host: host, Path: "app"}, image, kind, content)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.held[digest.FromBytes(content).String()]; !bytes.Equal(got, content) {
		t.Errorf("%d bytes of content were stored, want %d", len(got), len(content))
	}
	if got := b.held[p.Tag]; digest.FromBytes(got) != p.Digest {
		t.Errorf("manifest %s is not stored under its tag", p.Digest)
	}
	if b.bodies == 0 {
		t.Errorf("none of %d refused requests had a body", b.refused)
	}
}
