package images_test

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A misbehaviour is what a registry does to those that ask it.
type misbehaviour struct {
	fault fault
	every bool // request gets it, of all clients; else those of remorad for ranges of blobs alone
	tls   bool // it is a registry of HTTPS, which offers HTTP/2, too
}

// registries are all those of the matrix: they misbehave towards remorad, or towards everybody, or lack what the client has.
var registries = func() map[string]misbehaviour {
	all := map[string]misbehaviour{
		"as it should be":          {fault: passed},
		"200 without a length":     {fault: withoutLength},
		"gzip around answers":      {fault: packedAnswers, every: true},
		"gzip around ranges":       {fault: packedRanges},
		"10 requests a second":     {fault: new(tokens).limit},
		"Retry-After":              {fault: refusesOneOf(7), every: true},
		"403 for an expired URL":   {fault: signedForOne(), every: true},
		"405 to HEAD":              {fault: refusesHead(http.StatusMethodNotAllowed, func(string) bool { return true }), every: true},
		"403 to HEAD, but of tags": {fault: refusesHead(http.StatusForbidden, isDigest), every: true}, // nobody pulls without
		"HTTPS to plain HTTP":      {fault: toPlainHTTP, every: true, tls: true},
		"GOAWAY after each answer": {fault: sendsAway, every: true, tls: true},
		"Referrers API, no tags":   {fault: referrersBy(referrersAPI, anyTag), every: true},
		"no Referrers API, a list": {fault: referrersBy(status(http.StatusNotFound), ownTag), every: true},
		"no Referrers API, a page": {fault: referrersBy(aPage, nil), every: true},
		"307 to itself":            {fault: toItself(http.StatusTemporaryRedirect)},
		"308 to itself":            {fault: toItself(http.StatusPermanentRedirect)},
	}
	for _, code := range []int{http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed} {
		all[fmt.Sprint("no Referrers API, ", code)] = misbehaviour{fault: referrersBy(status(code), nil), every: true}
	}
	for name, f := range faults {
		all[name] = misbehaviour{fault: f}
	}
	return all
}()

func passed(w http.ResponseWriter, r *http.Request, pass http.Handler) { pass.ServeHTTP(w, r) }

func withoutRange(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	return r
}

func withoutLength(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	rec := recorded(withoutRange(r), pass)
	w.WriteHeader(rec.Code)
	w.(http.Flusher).Flush()
	_, _ = w.Write(rec.Body.Bytes())
}

// packedAnswers are those of a registry behind a proxy that packs each answer, to the client, too.
func packedAnswers(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	if r.Method != http.MethodGet {
		pass.ServeHTTP(w, r)
		return
	}
	pack(w, recorded(withoutRange(r), pass))
}

// packedRanges are ranges of the blob, each of them packed.
func packedRanges(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	pack(w, recorded(r, pass))
}

func pack(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	maps.Copy(w.Header(), rec.Header())
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Encoding", "gzip")
	w.WriteHeader(rec.Code)
	zw := gzip.NewWriter(w)
	_, _ = zw.Write(rec.Body.Bytes()) // or the client is gone
	_ = zw.Close()
}

// tokens are ten a second, of which ten are kept.
type tokens struct {
	mu   sync.Mutex // guards the fields below
	n    int
	last time.Time
}

func (b *tokens) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if came := int(time.Since(b.last) / (time.Second / 10)); came > 0 {
		b.n, b.last = min(b.n+came, 10), time.Now()
	}
	b.n--
	return b.n >= 0
}

// limit refuses those for whom no token is left, and does not say when to come again.
func (b *tokens) limit(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	if !b.take() {
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	pass.ServeHTTP(w, r)
}

// refusesOneOf refuses one of so many requests, whoever makes it, and says when to come again.
func refusesOneOf(many int64) fault {
	var asked atomic.Int64
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if asked.Add(1)%many == 0 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		pass.ServeHTTP(w, r)
	}
}

func toItself(code int) fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if r.URL.Query().Has("signed") {
			pass.ServeHTTP(w, r)
			return
		}
		http.Redirect(w, r, r.URL.Path+"?signed", code)
	}
}

// signedForOne sends those that ask for a blob to a URL that is good for one request. Then its signature has expired.
func signedForOne() fault {
	var signed sync.Map
	var count atomic.Int64
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		signature := r.URL.Query().Get("signature")
		switch _, good := signed.LoadAndDelete(signature); {
		case !strings.Contains(r.URL.Path, "/blobs/"), good:
			pass.ServeHTTP(w, r)
		case signature == "":
			signature = fmt.Sprint(count.Add(1))
			signed.Store(signature, true)
			http.Redirect(w, r, r.URL.Path+"?signature="+signature, http.StatusTemporaryRedirect)
		default:
			w.WriteHeader(http.StatusForbidden)
		}
	}
}

// refusesHead refuses HEAD of what has some names.
func refusesHead(code int, named func(string) bool) fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if r.Method == http.MethodHead && named(path.Base(r.URL.Path)) {
			w.WriteHeader(code)
			return
		}
		pass.ServeHTTP(w, r)
	}
}

func isDigest(name string) bool { return strings.Contains(name, ":") }

// toPlainHTTP sends those that ask for a blob to the registry behind, which does not speak TLS.
func toPlainHTTP(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	if !strings.Contains(r.URL.Path, "/blobs/") {
		pass.ServeHTTP(w, r)
		return
	}
	http.Redirect(w, r, "http://"+pass.(behind).addr+r.URL.Path, http.StatusTemporaryRedirect)
}

// sendsAway is asked for one thing by each connection: HTTP/2 has GOAWAY for that, HTTP/1.1 a header.
func sendsAway(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	w.Header().Set("Connection", "close")
	pass.ServeHTTP(w, r)
}

// Tags under which things that belong to an image are found: that of the list which the distribution specification has for registries
// without a Referrers API, and those of what remorad has published. Where another tool has copied the image, the latter are not there.
var (
	anyTag = regexp.MustCompile("^sha256-[0-9a-f]{64}")
	ownTag = regexp.MustCompile(`^sha256-[0-9a-f]{64}\.`)
)

// referrersBy answers the Referrers API so, and lacks some tags, if lacks is not nil.
func referrersBy(api fault, lacks *regexp.Regexp) fault {
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		switch dir, name := path.Split(r.URL.Path); {
		case strings.HasSuffix(dir, "/referrers/"):
			api(w, r, pass)
		case strings.HasSuffix(dir, "/manifests/") && lacks != nil && lacks.MatchString(name):
			http.NotFound(w, r)
		default:
			pass.ServeHTTP(w, r)
		}
	}
}

// referrersAPI lists what clients of the registry behind, which has no such thing, have listed under a tag.
func referrersAPI(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	r = r.Clone(r.Context())
	r.URL.Path = strings.NewReplacer("/referrers/sha256:", "/manifests/sha256-").Replace(r.URL.Path)
	rec := recorded(r, pass)
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	if rec.Code == http.StatusNotFound {
		none := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
		none.Manifests = []ocispec.Descriptor{}
		_ = json.NewEncoder(w).Encode(none) // or the client is gone
		return
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes()) // or the client is gone
}

func aPage(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, "<!doctype html><title>Registry</title>") // or the client is gone
}
