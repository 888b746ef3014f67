package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/remote/registry"
)

// TestNoReferrers: what is published is found under its own tag, or by the list under the tag that clients keep for that, whatever a
// registry without the Referrers API answers there. That it has none is found out once. Where nothing is published, that is no fault of
// the registry.
func TestNoReferrers(t *testing.T) {
	image, want := digest.FromString("image"), []byte("what is published")
	published := artifact(t, image, want, true)
	list := "manifests/" + image.Algorithm().String() + "-" + image.Encoded()
	itself := "manifests/" + digest.FromBytes(published).String()
	foreign := referrer(published, "2030-01-01T00:00:00Z")
	foreign.ArtifactType = "application/vnd.else"
	for name, absent := range map[string]func(w http.ResponseWriter){
		"404": func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) },
		"400": func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadRequest) },
		"403": func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) },
		"405": func(w http.ResponseWriter) { w.WriteHeader(http.StatusMethodNotAllowed) },
		"501": func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotImplemented) },
		"a page": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = io.WriteString(w, "<!doctype html>") // or the client is gone
		},
	} {
		for how, has := range map[string]documents{
			"under its tag":      {"manifests/" + registry.ArtifactTag(image, "kind"): published},
			"by a list":          {list: listOf(t, foreign, referrer(published, "")), itself: published},
			"nothing":            {},
			"an empty list":      {list: listOf(t)},
			"what lists no more": {list: listOf(t, referrer(published, ""))},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				var asked atomic.Int64
				r, repo := registryOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, "/referrers/") {
						asked.Add(1)
						absent(w)
						return
					}
					has.ServeHTTP(w, r)
				}))
				for range 3 {
					kind := registry.ArtifactKind{Type: artifactType, Tag: "kind", Limit: 1 << 20}
					got, err := r.Artifact(t.Context(), repo, image, kind, nil)
					there := how == "under its tag" || how == "by a list"
					if there && (err != nil || !bytes.Equal(got, want)) || !there && !errors.Is(err, registry.ErrNotFound) {
						t.Errorf("got %q, %v", got, err)
					}
				}
				if n := asked.Load(); n > 1 && how != "under its tag" { // which ends the other way before it has an answer
					t.Errorf("the Referrers API was asked for %d times", n)
				}
			})
		}
	}
}

// TestExpiredSignature: a place to which a registry has sent us, and which no longer takes the signature, is asked for anew, once.
func TestExpiredSignature(t *testing.T) {
	for _, status := range []int{http.StatusForbidden, http.StatusBadRequest, http.StatusUnauthorized} {
		var now atomic.Int64
		storage := newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			if r.URL.Query().Get("signature") == fmt.Sprint(now.Load()) {
				return false
			}
			w.WriteHeader(status)
			return true
		})
		reg := newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			at := fmt.Sprintf("http://%s%s?signature=%d", storage.host(), r.URL.Path, now.Load())
			http.Redirect(w, r, at, http.StatusTemporaryRedirect)
			return true
		})
		b := blobOn(t, "reg.test", plain(reg.host()), registry.Options{Retry: registry.Retry{Attempts: 1}})
		for want := range int64(3) {
			wantRange(t, b, 0, 1000)
			wantRange(t, b, 1000, 1000)
			if n := reg.requests.Load(); n != want+1 {
				t.Errorf("%d: the registry was asked %d times, want %d", status, n, want+1)
			}
			now.Add(1)
		}
	}
}

// TestLengthIsNotSaid: ranges come whole from a server that does not say how long they are, though it ends some early.
func TestLengthIsNotSaid(t *testing.T) {
	for _, early := range []bool{false, true} {
		s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			var from, to int
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
				t.Error(err)
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			w.(http.Flusher).Flush()
			if n := to + 1 - from; early && n > 10_000 {
				to = from + n/2
			}
			_, _ = w.Write(data[from : to+1]) // or the client is gone
			return true
		})
		b := blobOn(t, "reg.test", plain(s.host()), registry.Options{Retry: registry.Retry{Attempts: 2}})
		wantRange(t, b, 5, 100_000)
		if n := s.requests.Load(); n > 1 != early {
			t.Errorf("ends early %v: %d requests", early, n)
		}
	}
}
