package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// TestKnown: what is remembered of registries is bounded, however many are named.
func TestKnown(t *testing.T) {
	long := "/" + strings.Repeat("x", maxURL)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch {
		case strings.HasSuffix(q.URL.Path, "/blobs/long"):
			http.Redirect(w, q, long, http.StatusTemporaryRedirect)
		case strings.Contains(q.URL.Path, "/blobs/"):
			http.Redirect(w, q, "/there", http.StatusTemporaryRedirect)
		default:
			w.WriteHeader(http.StatusPartialContent)
		}
	}))
	t.Cleanup(srv.Close)
	r := New(Options{})
	host := docker.RegistryHost{Scheme: "http", Host: srv.Listener.Addr().String(), Path: "/v2"}
	ask := func(what string) {
		t.Helper()
		resp, err := r.request(context.Background(), host, Repository{Host: host.Host, Path: "a"}, what, "bytes=0-0")
		if err != nil {
			t.Fatal(err)
		}
		drain(resp)
	}
	ask("long")
	if n := r.redirects.Len(); n != 0 {
		t.Errorf("a redirect to %d bytes is remembered", len(long))
	}
	for i := range knownRedirects + 50 {
		if i < 50 {
			ask(fmt.Sprint(i))
		} else {
			r.redirects.Add(fmt.Sprint(i), redirect{})
		}
	}
	for i := range knownHosts + 50 {
		r.meterOf(fmt.Sprint(i))
		if i < 10 {
			if _, err := r.registryHosts(t.Context(), fmt.Sprintf("h%d.example.com", i)); err != nil {
				t.Fatal(err)
			}
		} else {
			r.hosts.Add(fmt.Sprint(i), cachedHosts{})
		}
	}
	if r.redirects.Len() != knownRedirects || r.meters.Len() != knownHosts || r.hosts.Len() != knownHosts {
		t.Errorf("%d redirects, %d meters, %d hosts are remembered", r.redirects.Len(), r.meters.Len(), r.hosts.Len())
	}
	one, another, again := r.meterOf("20"), r.meterOf("21"), r.meterOf("20")
	if one == another || one != again {
		t.Error("a meter is another registry's")
	}
}
