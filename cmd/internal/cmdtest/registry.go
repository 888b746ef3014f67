package cmdtest

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Registry is an OCI registry in memory, at a port of this machine. It keeps what the distribution specification asks of
// pulls, pushes, mounts and deletions; it has no Referrers API, as many registries have none.
type Registry struct {
	host string // 127.0.0.1:PORT

	mu        sync.Mutex // guards the fields below
	user      string     // USER:PASSWORD that every request must have, or ""
	fault     func(w http.ResponseWriter, r *http.Request) bool
	requests  []string                         // "METHOD /path", in order
	blobs     map[string]map[digest.Digest]Doc // by repository
	manifests map[string]map[digest.Digest]Doc
	tags      map[string]digest.Digest // by "repository:tag"
	uploads   map[string][]byte        // by path
}

// NewRegistry starts an empty registry, which ends with the test.
func NewRegistry(t testing.TB) *Registry {
	r := &Registry{
		blobs: map[string]map[digest.Digest]Doc{}, manifests: map[string]map[digest.Digest]Doc{},
		tags: map[string]digest.Digest{}, uploads: map[string][]byte{},
	}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.host = server.Listener.Addr().String()
	return r
}

// Ref returns the reference of an image in the registry, of "repository:tag" or "repository@digest".
func (r *Registry) Ref(name string) string { return r.host + "/" + name }

// Host returns the registry's host and port.
func (r *Registry) Host() string { return r.host }

// Require makes the registry ask for a user and a password, written USER:PASSWORD.
func (r *Registry) Require(user string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user = user
}

// Fault has a function see every request first. One for which it returns true it has answered.
func (r *Registry) Fault(f func(w http.ResponseWriter, q *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

// Put stores an image under a tag.
func (r *Registry) Put(repo, tag string, img *Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, doc := range img.Docs {
		r.storeLocked(repo, d, doc)
	}
	r.tags[repo+":"+tag] = img.Target.Digest
}

// Get returns what a tag of a repository names, with all that belongs to it, or nil.
func (r *Registry) Get(repo, tag string) *Image {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.tags[repo+":"+tag]
	if !ok {
		return nil
	}
	img := &Image{Docs: map[digest.Digest]Doc{}}
	for _, all := range []map[digest.Digest]Doc{r.blobs[repo], r.manifests[repo]} {
		for d, doc := range all {
			img.Docs[d] = doc
		}
	}
	doc := img.Docs[d]
	img.Target = ocispec.Descriptor{MediaType: doc.MediaType, Digest: d, Size: int64(len(doc.Data))}
	return img
}

// Tags returns the tags of a repository, sorted.
func (r *Registry) Tags(repo string) (tags []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.tags {
		if tag, ok := strings.CutPrefix(name, repo+":"); ok {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

// Requests returns the requests that begin with a prefix, like "POST /v2/app/", as they came.
func (r *Registry) Requests(prefix string) (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.requests {
		if strings.HasPrefix(q, prefix) {
			all = append(all, q)
		}
	}
	return all
}

// Forget forgets the requests so far.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

func (r *Registry) storeLocked(repo string, d digest.Digest, doc Doc) {
	all := r.blobs
	if isManifest(doc.MediaType) {
		all = r.manifests
	}
	if all[repo] == nil {
		all[repo] = map[digest.Digest]Doc{}
	}
	all[repo][d] = doc
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, q.Method+" "+q.URL.RequestURI())
	fault, user := r.fault, r.user
	r.mu.Unlock()
	if fault != nil && fault(w, q) {
		return
	}
	name, password, _ := q.BasicAuth()
	if user != "" && name+":"+password != user {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	path := strings.TrimPrefix(q.URL.Path, "/v2/")
	if path == "" {
		return // the registry is there
	}
	for kind, serve := range map[string]func(http.ResponseWriter, *http.Request, string, string){
		"/blobs/uploads/": r.upload, "/manifests/": r.manifest, "/blobs/": r.blob,
	} {
		repo, what, ok := strings.Cut(path, kind)
		if ok && (kind != "/blobs/" || !strings.HasPrefix(what, "uploads/")) {
			serve(w, q, repo, what)
			return
		}
	}
	http.NotFound(w, q)
}

func (r *Registry) blob(w http.ResponseWriter, q *http.Request, repo, what string) {
	r.mu.Lock()
	doc, ok := r.blobs[repo][digest.Digest(what)]
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, q)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", what)
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(doc.Data))
}

func (r *Registry) manifest(w http.ResponseWriter, q *http.Request, repo, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, tagged := r.tags[repo+":"+what]
	if !tagged {
		d = digest.Digest(what)
	}
	if q.Method == http.MethodPut {
		p, err := io.ReadAll(q.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		d = digest.FromBytes(p)
		if _, err := digest.Parse(what); err == nil && what != d.String() {
			http.Error(w, "another digest", http.StatusBadRequest)
			return
		} else if err != nil {
			r.tags[repo+":"+what] = d
		}
		r.storeLocked(repo, d, Doc{MediaType: q.Header.Get("Content-Type"), Data: p})
		w.Header().Set("Docker-Content-Digest", d.String())
		w.WriteHeader(http.StatusCreated)
		return
	}
	doc, ok := r.manifests[repo][d]
	if !ok {
		http.NotFound(w, q)
		return
	}
	if q.Method == http.MethodDelete {
		delete(r.manifests[repo], d)
		for name, of := range r.tags {
			if of == d && strings.HasPrefix(name, repo+":") {
				delete(r.tags, name)
			}
		}
		w.WriteHeader(http.StatusAccepted)
		return
	}
	w.Header().Set("Content-Type", doc.MediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(doc.Data))
}

// upload takes blobs in one piece or in several, or from another repository.
func (r *Registry) upload(w http.ResponseWriter, q *http.Request, repo, _ string) {
	p, err := io.ReadAll(q.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ask := q.URL.Query()
	if mount := digest.Digest(ask.Get("mount")); q.Method == http.MethodPost && mount != "" {
		if doc, ok := r.blobs[ask.Get("from")][mount]; ok {
			r.storeLocked(repo, mount, doc)
			w.WriteHeader(http.StatusCreated)
			return
		}
	}
	at := q.URL.Path
	if q.Method == http.MethodPost {
		at += digest.FromString(at + time.Now().String()).Encoded()
	}
	r.uploads[at] = append(r.uploads[at], p...)
	d := digest.Digest(ask.Get("digest"))
	if d == "" {
		w.Header().Set("Location", at)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if digest.FromBytes(r.uploads[at]) != d {
		http.Error(w, "another digest", http.StatusBadRequest)
		return
	}
	r.storeLocked(repo, d, Doc{Data: r.uploads[at]})
	delete(r.uploads, at)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}
