package imagetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/remote/registry"
)

// An Origin is a registry in this process: the parts of the distribution API by which images are pulled
// and artifacts published. It fails as a test says, since no registry does on command.
type Origin struct {
	*httptest.Server

	mu    sync.Mutex // guards the fields below
	blobs map[digest.Digest][]byte
	docs  map[string]document // by "PATH:TAG" or "PATH@DIGEST"
	asked []ask
	// fault answers a request itself, or not.
	fault func(w http.ResponseWriter, r *http.Request) (handled bool)
}

type document struct {
	mediaType string
	data      []byte
}

// ask is a request that the origin was asked. Kind is blobs, manifests, referrers or "".
type ask struct {
	method, kind, what, ranged string
}

// NewOrigin starts an origin that serves images. It ends with the test.
func NewOrigin(t testing.TB, images ...*Image) *Origin {
	t.Helper()
	o := &Origin{blobs: map[digest.Digest][]byte{}, docs: map[string]document{}}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	for _, im := range images {
		o.Add(im)
	}
	return o
}

// Host returns the origin's host and port.
func (o *Origin) Host() string { return o.Listener.Addr().String() }

// Client returns a client of the origin, which tries everything twice.
func (o *Origin) Client(t testing.TB) *registry.Registry {
	t.Helper()
	var logins registry.Logins
	if _, err := logins.Set(o.Host(), registry.Login{PlainHTTP: true}); err != nil {
		t.Fatal(err)
	}
	return registry.New(registry.Options{
		Logins: &logins, Retry: registry.Retry{Attempts: 2, First: time.Millisecond}, Log: LogOf(t),
	})
}

// Add has the origin serve an image.
func (o *Origin) Add(im *Image) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range im.Layers {
		o.blobs[l.Digest()] = l.Blob
	}
	o.blobs[im.ConfigDesc.Digest] = im.Config
	doc := document{im.Target.MediaType, im.Manifest}
	o.docs[im.Path+":"+im.Tag], o.docs[im.Path+"@"+im.Target.Digest.String()] = doc, doc
}

// SetFault has the origin answer some requests otherwise from now on; nil for none.
func (o *Origin) SetFault(fault func(w http.ResponseWriter, r *http.Request) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fault = fault
}

// Answer has the origin answer requests whose path contains a text with a status.
func (o *Origin) Answer(text string, status int) {
	o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, text) {
			return false
		}
		w.WriteHeader(status)
		return true
	})
}

// Serve has the origin serve other bytes under a digest.
func (o *Origin) Serve(d digest.Digest, p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.blobs[d] = p
}

// Bytes returns what the origin serves under a digest; nil for nothing.
func (o *Origin) Bytes(d digest.Digest) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.blobs[d]
}

// Silence has requests whose path contains a text wait until release is called, or their clients leave.
func (o *Origin) Silence(text string) (release func()) { return o.stop(text, 0) }

// Hold has answers to requests whose path contains a text stop after the first bytes, likewise: enough to show what a layer is.
// Answers of no more bytes come whole.
func (o *Origin) Hold(text string) (release func()) { return o.stop(text, 512) }

func (o *Origin) stop(text string, after int) (release func()) {
	held := make(chan struct{})
	o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, text) {
			return false
		}
		_, kind, what := SplitPath(r.URL.Path)
		if after == 0 || kind != "blobs" {
			select {
			case <-held:
			case <-r.Context().Done():
			}
			return false
		}
		o.Blob(&StoppedAnswer{ResponseWriter: w, R: r, Left: after, Held: held}, r, digest.Digest(what))
		return true
	})
	return sync.OnceFunc(func() { close(held) })
}

// StoppedAnswer is an answer of which all but the first bytes come later.
type StoppedAnswer struct {
	http.ResponseWriter
	R    *http.Request
	Left int
	Held chan struct{}
	Cut  bool // they never come
}

// Write implements http.ResponseWriter.
func (s *StoppedAnswer) Write(p []byte) (int, error) {
	if len(p) <= s.Left {
		return s.ResponseWriter.Write(p)
	}
	now := s.Left
	s.Left = 0
	n, err := s.ResponseWriter.Write(p[:now])
	if err != nil {
		return n, err
	}
	s.ResponseWriter.(http.Flusher).Flush()
	select {
	case <-s.Held:
	case <-s.R.Context().Done():
	}
	if s.Cut {
		return n, http.ErrAbortHandler
	}
	k, err := s.ResponseWriter.Write(p[n:])
	return n + k, err
}

// Await returns when a layer's blob was asked for.
func (o *Origin) Await(l Layer) {
	for o.Requests("blobs", l.Digest().String()) == 0 {
		time.Sleep(time.Millisecond)
	}
}

// Requests returns how often something was asked for.
func (o *Origin) Requests(kind string, what string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range o.asked {
		if a.kind == kind && a.what == what {
			n++
		}
	}
	return n
}

// Wholly reports whether a blob was asked for from its first byte to its last by one request.
func (o *Origin) Wholly(l Layer) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.asked, func(a ask) bool {
		return a.kind == "blobs" && a.what == l.Digest().String() &&
			(a.ranged == "" || a.ranged == fmt.Sprintf("bytes=0-%d", len(l.Blob)-1))
	})
}

// AskedFrom returns the first byte of a layer's blob that was asked for, by requests for more than what proves a layer.
func (o *Origin) AskedFrom(l Layer) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := int64(len(l.Blob))
	for _, a := range o.asked {
		var from, to int64
		if a.what != l.Digest().String() {
			continue
		}
		if n, err := fmt.Sscanf(a.ranged, "bytes=%d-%d", &from, &to); n == 2 && err == nil && to-from >= scan.HeadSize {
			first = min(first, from)
		}
	}
	return first
}

// Document has the origin serve a manifest under a tag and its digest.
func (o *Origin) Document(repo, tag, mediaType string, data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	doc := document{mediaType, data}
	o.docs[repo+":"+tag], o.docs[repo+"@"+digest.FromBytes(data).String()] = doc, doc
}

// Has reports whether a manifest is there.
func (o *Origin) Has(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.docs[name]
	return ok
}

// Forget drops what was asked so far.
func (o *Origin) Forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = nil
}

// ServeHTTP implements http.Handler.
func (o *Origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	repo, kind, what := SplitPath(r.URL.Path)
	o.mu.Lock()
	o.asked = append(o.asked, ask{r.Method, kind, what, r.Header.Get("Range")})
	fault := o.fault
	o.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case kind == "" && read:
		w.WriteHeader(http.StatusOK)
	case kind == "blobs" && read:
		o.Blob(w, r, digest.Digest(what))
	case kind == "blobs":
		o.upload(w, r)
	case kind == "manifests" && read:
		o.manifest(w, r, repo, what)
	case kind == "manifests" && r.Method == http.MethodPut:
		o.put(w, r, repo, what)
	case kind == "referrers" && read:
		o.referrers(w, repo, digest.Digest(what))
	default:
		http.NotFound(w, r)
	}
}

// SplitPath takes apart a path like /v2/some/app/blobs/sha256:….
func SplitPath(path string) (repo, kind, what string) {
	for _, kind := range []string{"blobs", "manifests", "referrers"} {
		if repo, what, ok := strings.Cut(path, "/"+kind+"/"); ok {
			return strings.TrimPrefix(repo, "/v2/"), kind, what
		}
	}
	return "", "", ""
}

// Blob answers a request for a blob, by range or whole.
func (o *Origin) Blob(w http.ResponseWriter, r *http.Request, d digest.Digest) {
	o.mu.Lock()
	p, ok := o.blobs[d]
	o.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
}

// upload takes a blob by POST and PUT.
func (o *Origin) upload(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		w.Header().Set("Location", (&url.URL{Path: r.URL.Path + "one"}).String())
		w.WriteHeader(http.StatusAccepted)
		return
	}
	p, err := io.ReadAll(r.Body)
	d := digest.Digest(r.URL.Query().Get("digest"))
	if err != nil || digest.FromBytes(p) != d {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	o.mu.Lock()
	o.blobs[d] = p
	o.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
}

func (o *Origin) manifest(w http.ResponseWriter, r *http.Request, repo, ref string) {
	o.mu.Lock()
	doc, ok := o.docs[repo+":"+ref]
	if _, err := digest.Parse(ref); err == nil {
		doc, ok = o.docs[repo+"@"+ref]
	}
	o.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", doc.mediaType)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(doc.data).String())
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(doc.data))
}

func (o *Origin) put(w http.ResponseWriter, r *http.Request, repo, ref string) {
	p, err := io.ReadAll(r.Body)
	var m ocispec.Manifest
	if err == nil {
		err = json.Unmarshal(p, &m)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	d := digest.FromBytes(p)
	doc := document{r.Header.Get("Content-Type"), p}
	o.mu.Lock()
	o.docs[repo+":"+ref], o.docs[repo+"@"+d.String()] = doc, doc
	o.mu.Unlock()
	if m.Subject != nil {
		w.Header().Set("OCI-Subject", m.Subject.Digest.String())
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

// referrers lists the manifests that name another one as their subject.
func (o *Origin) referrers(w http.ResponseWriter, repo string, subject digest.Digest) {
	list := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	o.mu.Lock()
	for name, doc := range o.docs {
		var m ocispec.Manifest
		d, ours := strings.CutPrefix(name, repo+"@")
		if ours && json.Unmarshal(doc.data, &m) == nil && m.Subject != nil && m.Subject.Digest == subject {
			list.Manifests = append(list.Manifests, ocispec.Descriptor{
				MediaType: doc.mediaType, Digest: digest.Digest(d), Size: int64(len(doc.data)), ArtifactType: m.ArtifactType,
				Annotations: m.Annotations,
			})
		}
	}
	o.mu.Unlock()
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	if err := json.NewEncoder(w).Encode(list); err != nil {
		return // the client is gone
	}
}

// Publish publishes what belongs to an image.
func Publish(t *testing.T, o *Origin, im *Image, kind registry.ArtifactKind, data []byte) {
	t.Helper()
	repo := registry.Repository{Host: o.Host(), Path: im.Path}
	if _, err := o.Client(t).PushArtifact(t.Context(), repo, im.Target, kind, data); err != nil {
		t.Fatal(err)
	}
}

// PublishApart publishes what belongs to an image as a blob of its own, however small it is.
func PublishApart(t *testing.T, o *Origin, im *Image, kind registry.ArtifactKind, data []byte) {
	t.Helper()
	d := digest.FromBytes(data)
	o.Serve(d, data)
	o.Document(im.Path, registry.ArtifactTag(im.Target.Digest, kind.Tag), ocispec.MediaTypeImageManifest, Encode(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: kind.Type,
		Layers: []ocispec.Descriptor{{MediaType: kind.MediaType, Digest: d, Size: int64(len(data))}}, Subject: &im.Target,
	}))
}
