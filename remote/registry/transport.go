package registry

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// A transport sends requests to one host that serves a registry, and to wherever that host redirects them. The host alone gets its
// headers and credentials, and not by plain HTTP if it is one of HTTPS. A request that the host answers with 401 is sent again,
// with what the answer asked for.
type transport struct {
	host docker.RegistryHost
	base http.RoundTripper
}

// maxRefused is how many answers of 401 make a request be sent again: one may be for an old token, one for
// a scope that the first token did not have.
const maxRefused = 2

// clientOf returns a client whose requests to a host have the host's headers and credentials.
func clientOf(host docker.RegistryHost) http.Client {
	var c http.Client
	if host.Client != nil {
		c = *host.Client
	}
	if c.Transport == nil {
		c.Transport = http.DefaultTransport
	}
	c.Transport = &transport{host: host, base: c.Transport}
	return c
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != t.host.Host || req.URL.Scheme == "http" && t.host.Scheme == "https" {
		return t.base.RoundTrip(req)
	}
	var refused []*http.Response
	for {
		attempt, err := t.prepare(req, len(refused) > 0)
		if err != nil {
			return nil, err
		}
		resp, err := t.base.RoundTrip(attempt)
		if err != nil || resp.StatusCode != http.StatusUnauthorized {
			return resp, err
		}
		if t.host.Authorizer == nil || len(refused) == maxRefused || !repeatable(req) {
			return resp, nil
		}
		drain(resp)
		refused = append(refused, resp)
		if err := t.host.Authorizer.AddResponses(req.Context(), refused); err != nil {
			return nil, &authError{fmt.Errorf("%w: %s: %w", ErrUnauthorized, t.host.Host, hide(err))}
		}
	}
}

// prepare returns a copy of a request with the host's headers and credentials.
func (t *transport) prepare(req *http.Request, again bool) (*http.Request, error) {
	attempt := req.Clone(req.Context())
	if again && hasBody(req) {
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		attempt.Body = body
	}
	for k, v := range t.host.Header {
		attempt.Header[k] = append([]string(nil), v...)
	}
	if t.host.Authorizer != nil {
		if err := t.host.Authorizer.Authorize(req.Context(), attempt); err != nil {
			if attempt.Body != nil {
				attempt.Body.Close() // RoundTrip has promised that
			}
			return nil, &authError{tokenError(t.host.Host, err)}
		}
	}
	return attempt, nil
}

func hasBody(req *http.Request) bool { return req.Body != nil && req.Body != http.NoBody }

// repeatable reports whether a request's body, if it has one, can be sent once more.
func repeatable(req *http.Request) bool { return !hasBody(req) || req.GetBody != nil }

// An authError is one of getting credentials accepted. It says all that there is to say.
type authError struct{ error }

func (e *authError) Unwrap() error { return e.error }

// clean returns a client's error without what may be secret, and one of credentials without the request around it.
func clean(err error) error {
	var auth *authError
	if errors.As(err, &auth) {
		return auth.error
	}
	return hide(err)
}
