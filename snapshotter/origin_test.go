package snapshotter

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

// An origin is a registry in this process: the parts of the distribution API by which images are pulled
// and artifacts published. It fails as a test says, since no registry does on command.
type origin struct {
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

func newOrigin(t testing.TB, images ...*image) *origin {
	t.Helper()
	o := &origin{blobs: map[digest.Digest][]byte{}, docs: map[string]document{}}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	for _, im := range images {
		o.add(im)
	}
	return o
}

func (o *origin) host() string { return o.Listener.Addr().String() }

// client returns a client of the origin, which tries everything twice.
func (o *origin) client(t testing.TB) *registry.Registry {
	t.Helper()
	var logins registry.Logins
	if _, err := logins.Set(o.host(), registry.Login{PlainHTTP: true}); err != nil {
		t.Fatal(err)
	}
	return registry.New(registry.Options{
		Logins: &logins, Retry: registry.Retry{Attempts: 2, First: time.Millisecond}, Log: logOf(t),
	})
}

// add has the origin serve an image.
func (o *origin) add(im *image) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range im.layers {
		o.blobs[l.digest()] = l.blob
	}
	o.blobs[im.configDesc.Digest] = im.config
	doc := document{im.target.MediaType, im.manifest}
	o.docs[im.path+":"+im.tag], o.docs[im.path+"@"+im.target.Digest.String()] = doc, doc
}

// setFault has the origin answer some requests otherwise from now on; nil for none.
func (o *origin) setFault(fault func(w http.ResponseWriter, r *http.Request) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fault = fault
}

// answer has the origin answer requests whose path contains a text with a status.
func (o *origin) answer(text string, status int) {
	o.setFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, text) {
			return false
		}
		w.WriteHeader(status)
		return true
	})
}

// serve has the origin serve other bytes under a digest.
func (o *origin) serve(d digest.Digest, p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.blobs[d] = p
}

// silence has requests whose path contains a text wait until release is called, or their clients leave.
func (o *origin) silence(text string) (release func()) { return o.stop(text, 0) }

// hold has answers to requests whose path contains a text stop after the first bytes, likewise: enough to show what a layer is.
// Answers of no more bytes come whole.
func (o *origin) hold(text string) (release func()) { return o.stop(text, 512) }

func (o *origin) stop(text string, after int) (release func()) {
	held := make(chan struct{})
	o.setFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, text) {
			return false
		}
		_, kind, what := split(r.URL.Path)
		if after == 0 || kind != "blobs" {
			select {
			case <-held:
			case <-r.Context().Done():
			}
			return false
		}
		o.blob(&stoppedAnswer{ResponseWriter: w, r: r, left: after, held: held}, r, digest.Digest(what))
		return true
	})
	return sync.OnceFunc(func() { close(held) })
}

// stoppedAnswer is an answer of which all but the first bytes come later.
type stoppedAnswer struct {
	http.ResponseWriter
	r    *http.Request
	left int
	held chan struct{}
	cut  bool // they never come
}

func (s *stoppedAnswer) Write(p []byte) (int, error) {
	if len(p) <= s.left {
		return s.ResponseWriter.Write(p)
	}
	now := s.left
	s.left = 0
	n, err := s.ResponseWriter.Write(p[:now])
	if err != nil {
		return n, err
	}
	s.ResponseWriter.(http.Flusher).Flush()
	select {
	case <-s.held:
	case <-s.r.Context().Done():
	}
	if s.cut {
		return n, http.ErrAbortHandler
	}
	k, err := s.ResponseWriter.Write(p[n:])
	return n + k, err
}

// await returns when a layer's blob was asked for.
func (o *origin) await(l layer) {
	for o.requests("blobs", l.digest().String()) == 0 {
		time.Sleep(time.Millisecond)
	}
}

// requests returns how often something was asked for.
func (o *origin) requests(kind string, what string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range o.asked {
		if a.kind == kind && a.what == what {
			n++
		}
	}
	return n
}

// wholly reports whether a blob was asked for from its first byte to its last by one request.
func (o *origin) wholly(l layer) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.asked, func(a ask) bool {
		return a.kind == "blobs" && a.what == l.digest().String() &&
			(a.ranged == "" || a.ranged == fmt.Sprintf("bytes=0-%d", len(l.blob)-1))
	})
}

// askedFrom returns the first byte of a layer's blob that was asked for, by requests for more than what proves a layer.
func (o *origin) askedFrom(l layer) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := int64(len(l.blob))
	for _, a := range o.asked {
		var from, to int64
		if a.what != l.digest().String() {
			continue
		}
		if n, err := fmt.Sscanf(a.ranged, "bytes=%d-%d", &from, &to); n == 2 && err == nil && to-from >= scan.HeadSize {
			first = min(first, from)
		}
	}
	return first
}

// document has the origin serve a manifest under a tag and its digest.
func (o *origin) document(repo, tag, mediaType string, data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	doc := document{mediaType, data}
	o.docs[repo+":"+tag], o.docs[repo+"@"+digest.FromBytes(data).String()] = doc, doc
}

// has reports whether a manifest is there.
func (o *origin) has(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.docs[name]
	return ok
}

// forget drops what was asked so far.
func (o *origin) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = nil
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	repo, kind, what := split(r.URL.Path)
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
		o.blob(w, r, digest.Digest(what))
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

// split takes apart a path like /v2/some/app/blobs/sha256:….
func split(path string) (repo, kind, what string) {
	for _, kind := range []string{"blobs", "manifests", "referrers"} {
		if repo, what, ok := strings.Cut(path, "/"+kind+"/"); ok {
			return strings.TrimPrefix(repo, "/v2/"), kind, what
		}
	}
	return "", "", ""
}

func (o *origin) blob(w http.ResponseWriter, r *http.Request, d digest.Digest) {
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
func (o *origin) upload(w http.ResponseWriter, r *http.Request) {
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

func (o *origin) manifest(w http.ResponseWriter, r *http.Request, repo, ref string) {
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

func (o *origin) put(w http.ResponseWriter, r *http.Request, repo, ref string) {
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
func (o *origin) referrers(w http.ResponseWriter, repo string, subject digest.Digest) {
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
