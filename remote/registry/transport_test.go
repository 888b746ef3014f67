package registry

import (
	"context"
	"net/http"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// basic is an Authorizer that shows a password to everybody.
type basic struct{ docker.Authorizer }

func (basic) Authorize(_ context.Context, r *http.Request) error {
	r.SetBasicAuth("robot", "secret")
	return nil
}

// TestWhoGetsHeaders: a host's headers and credentials go to that host alone, and never by plain HTTP if it is one of HTTPS.
func TestWhoGetsHeaders(t *testing.T) {
	for _, c := range []struct {
		scheme, u string
		want      bool
	}{
		{"https", "https://reg.test/v2/", true},
		{"https", "http://reg.test/v2/", false},
		{"https", "https://storage.test/v2/", false},
		{"http", "http://reg.test/v2/", true},
		{"http", "https://reg.test/v2/", true},
		{"http", "http://reg.test:5000/v2/", false},
	} {
		var got *http.Request
		host := docker.RegistryHost{Scheme: c.scheme, Host: "reg.test", Header: http.Header{"X-One": {"s"}}, Authorizer: basic{}}
		tr := &transport{host: host, base: roundTrip(func(r *http.Request) (*http.Response, error) {
			got = r
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
		})}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.u, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if _, pass, _ := got.BasicAuth(); (pass != "") != c.want || (got.Header.Get("X-One") != "") != c.want {
			t.Errorf("%s of a host by %s gets %v, want all: %v", c.u, c.scheme, got.Header, c.want)
		}
	}
}
