package registry_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// An oddity is a registry that takes HTTP at its word, or does not. Those of T go by HTTPS.
type oddity struct {
	name    string
	site    string // that is asked first
	odd     func(bed *hostsBed, site string, w http.ResponseWriter, r *http.Request) (handled bool)
	fails   bool
	differs map[string]string // by operation: why our requests, or what becomes of them, are others than containerd's
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }

// leads redirects what a site is asked for.
func leads(from, to string, status int, what func(*http.Request) bool) func(*hostsBed, string, http.ResponseWriter, *http.Request) bool {
	return func(bed *hostsBed, site string, w http.ResponseWriter, r *http.Request) bool {
		if site != from || !what(r) {
			return false
		}
		w.Header().Set("Location", bed.named(to)+"/there"+r.URL.Path+"?signature=secret")
		w.WriteHeader(status)
		return true
	}
}

func anything(*http.Request) bool { return true }

func relative(bed *hostsBed, site string, w http.ResponseWriter, r *http.Request) bool {
	return !strings.HasPrefix(r.URL.Path, "/there") && leads("A", "", 307, anything)(bed, site, w, r)
}

// packs puts an encoding around each answer, as a proxy does that asks nobody.
func packs(name string, pack func([]byte) []byte) func(*hostsBed, string, http.ResponseWriter, *http.Request) bool {
	return func(_ *hostsBed, _ string, w http.ResponseWriter, r *http.Request) bool {
		p := bedBlob
		if !isBlob(r) {
			p = bedManifest
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", bedDigest.String())
		}
		w.Header().Set("Content-Encoding", name)
		_, _ = w.Write(pack(p)) // or the client is gone
		return true
	}
}

// noTags lacks all tags: containerd believes what a header says of one, and asks for its bytes later.
func noTags(
	odd func(*hostsBed, string, http.ResponseWriter, *http.Request) bool,
) func(*hostsBed, string, http.ResponseWriter, *http.Request) bool {
	return func(bed *hostsBed, site string, w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/latest") {
			http.NotFound(w, r)
			return true
		}
		return odd(bed, site, w, r)
	}
}

func asIs(p []byte) []byte { return p }

func gzipped(p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(p) // it is memory
	_ = w.Close()
	return b.Bytes()
}

const ownHeaders = "the host alone gets its headers: one may be a secret"

var oddities = []oddity{
	{"HEAD is refused (405)", "A", func(_ *hostsBed, _ string, w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
		return r.Method == http.MethodHead
	}, false, nil},
	{"301", "B", leads("B", "http://{A}", 301, isBlob), false, nil},
	{"302", "B", leads("B", "http://{A}", 302, isBlob), false, nil},
	{"303", "B", leads("B", "http://{A}", 303, isBlob), false, nil},
	{"307", "B", leads("B", "http://{A}", 307, isBlob), false, nil},
	{"308", "B", leads("B", "http://{A}", 308, isBlob), false, nil},
	{"308 of manifests, too", "B", leads("B", "http://{A}", 308, anything), false, nil},
	{"307 to the same host", "A", relative, false, nil},
	{"307 for ever", "A", leads("A", "http://{A}", 307, anything), true, nil},
	{"307 from plain HTTP to HTTPS", "B", leads("B", "https://{T}", 307, anything), true, nil},
	{"307 from HTTPS to plain HTTP", "T", leads("T", "http://{A}", 307, anything), false, map[string]string{
		"tag": "no digest says what must come, so anybody on the way could answer",
	}},
	{"307 with a header for the host", "with header", leads("B", "http://{A}", 307, anything), false, map[string]string{
		"tag": ownHeaders, "manifest": ownHeaders, "blob": ownHeaders,
	}},
	{"307 to another scheme", "B", leads("B", "file://{A}", 307, anything), true, nil},
	{"no Docker-Content-Digest", "A", func(bed *hostsBed, _ string, w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			return false
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest+"; charset=utf-8")
		_, _ = w.Write(bedManifest) // or the client is gone
		return true
	}, false, nil},
	{"no Content-Length", "A", func(_ *hostsBed, _ string, w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		p := bedManifest
		if isBlob(r) {
			p = bedBlob
			w.Header().Set("Content-Type", "application/octet-stream")
		}
		w.(http.Flusher).Flush()
		_, _ = w.Write(p) // or the client is gone
		return true
	}, false, nil},
	{"gzip around each answer", "A", packs("gzip", gzipped), false, nil},
	{"gzip around each answer, in capitals", "A", packs("GZIP", gzipped), false, nil},
	{"an encoding that is none", "A", packs("identity", asIs), false, nil},
	{"gzip around each answer, which is not there", "A", noTags(packs("gzip", asIs)), true, nil},
	{"an encoding that nobody knows", "A", noTags(packs("x-remora", asIs)), true, nil},
	{"a token for nothing", "A", func(bed *hostsBed, site string, w http.ResponseWriter, r *http.Request) bool {
		switch {
		case site == "B":
			_ = json.NewEncoder(w).Encode(map[string]string{"token": "t"}) // or the client is gone
		case r.Header.Get("Authorization") == "Bearer t":
			return false
		default:
			w.Header().Set("WWW-Authenticate", bed.named(`Bearer realm="http://{B}/token",service="s",scope="repository:some/app:pull"`))
			w.WriteHeader(http.StatusUnauthorized)
		}
		return true
	}, false, nil},
	{"credentials that nobody has", "A", func(_ *hostsBed, _ string, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}, true, nil},
}

// TestOddities: what containerd makes of a registry's oddity we make of it, too: both are served or both fail, and the same is asked
// for in the same order, whatever the method.
func TestOddities(t *testing.T) {
	level := log.GetLevel()
	if err := log.SetLevel("fatal"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.SetLevel(level.String()) }() // it was one
	bed := newHostsBed(t)
	for _, c := range oddities {
		t.Run(c.name, func(t *testing.T) {
			toml := "server = \"http://{" + c.site + "}\"\n"
			switch c.site {
			case "T":
				toml = "server = \"https://{T}\"\nskip_verify = true\n"
			case "with header":
				toml = "server = \"http://{B}\"\n[header]\n  x-one = \"s\"\n"
			}
			root := t.TempDir()
			bed.write(t, root, map[string]string{"reg.test/hosts.toml": toml})
			bed.mu.Lock()
			bed.odd = func(site string, w http.ResponseWriter, r *http.Request) bool { return c.odd(bed, site, w, r) }
			bed.mu.Unlock()
			for _, op := range operations {
				repo := registry.Repository{Host: "reg.test", Path: repo}
				theirs := docker.NewResolver(docker.ResolverOptions{
					Hosts: config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(root)}),
				})
				want, theirErr := bed.during(func() error { return op.containerd(t.Context(), theirs, repo) })
				ours := registry.New(registry.Options{ConfigPath: []string{root}, Retry: registry.Retry{Attempts: 2, First: time.Millisecond}})
				got, ourErr := bed.during(func() error { return op.ours(t.Context(), ours, repo) })
				got, want = slices.Compact(got), slices.Compact(want)
				same := slices.Equal(got, want) && (ourErr == nil) == (theirErr == nil)
				if why := c.differs[op.name]; same != (why == "") || (theirErr != nil) != c.fails {
					t.Errorf("%s: we asked\n\t%s (%v)\ncontainerd asked\n\t%s (%v)\nthey should differ since: %q; fails: %v", op.name,
						strings.Join(got, "\n\t"), ourErr, strings.Join(want, "\n\t"), theirErr, why, c.fails)
				}
				for _, saw := range got {
					if strings.HasPrefix(saw, "A /there") && strings.Contains(saw, "X-") {
						t.Errorf("%s: a header went on: %s", op.name, saw)
					}
				}
				if ourErr != nil && strings.Contains(ourErr.Error(), "secret") {
					t.Errorf("a signature is in the message: %v", ourErr)
				}
			}
		})
	}
}

// TestHeadRefused: what is done by HEAD beside reading works where HEAD is refused.
func TestHeadRefused(t *testing.T) {
	image := digest.FromString("image")
	manifest, none := artifact(t, image, nil, true), listOf(t)
	for _, says := range []bool{true, false} { // which digest a manifest has
		var deleted atomic.Bool
		s := newServer(t, func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			switch r.Method {
			case http.MethodHead:
				w.WriteHeader(http.StatusMethodNotAllowed)
			case http.MethodDelete:
				deleted.Store(true)
				w.WriteHeader(http.StatusAccepted)
			default:
				if strings.Contains(r.URL.Path, "/referrers/") {
					w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
					_, _ = w.Write(none) // or the client is gone
					return true
				}
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				if says {
					w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
				}
				_, _ = w.Write(manifest) // or the client is gone
			}
			return true
		})
		toml := strings.Replace(plain(s.host()), `"resolve"`, `"resolve","push"`, 1)
		r := registry.New(registry.Options{ConfigPath: []string{hostsDir(t, "reg.test", toml)}})
		kind := registry.ArtifactKind{Type: artifactType, Tag: "x"}
		err := r.RemoveArtifact(t.Context(), registry.Repository{Host: "reg.test", Path: repo}, image, kind)
		if err != nil || !deleted.Load() {
			t.Errorf("deleted %v, %v", deleted.Load(), err)
		}
	}
}

// TestOtherManifest: a mirror that serves other bytes than a digest says is one that fails, and the next host is asked.
func TestOtherManifest(t *testing.T) {
	serve := func(doc string) *server {
		return newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			_, _ = io.WriteString(w, doc) // or the client is gone
			return true
		})
	}
	mirror, origin := serve(`{}`), serve(string(bedManifest))
	root := hostsDir(t, "reg.test", mirrored(mirror.host(), origin.host()))
	r := registry.New(registry.Options{ConfigPath: []string{root}})
	_, doc, err := r.Manifest(t.Context(), registry.Repository{Host: "reg.test", Path: repo}, bedDigest.String())
	if err != nil || !bytes.Equal(doc, bedManifest) || mirror.requests.Load() != 1 {
		t.Errorf("%s, %v; the mirror was asked %d times", doc, err, mirror.requests.Load())
	}
}
