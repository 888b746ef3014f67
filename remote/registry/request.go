package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

const (
	maxRedirects = 10
	redirectTTL  = 5 * time.Minute // signed URLs commonly live longer; one that does not is dropped when it fails
)

// redirect is where a host sent us for a blob.
type redirect struct {
	url   string
	until time.Time
}

// request makes one GET of a blob at one host: with the host's headers and credentials, and
// without them where it is redirected to another host. It returns any answer but a redirect.
func (r *Registry) request(ctx context.Context, host docker.RegistryHost, repo Repository, dgst, rng string) (*http.Response, error) {
	u := blobURL(host, repo, dgst)
	r.mu.Lock()
	to, cached := r.redirects[u]
	r.mu.Unlock()
	if cached && time.Now().Before(to.until) {
		resp, err := r.get(ctx, host, to.url, rng, "", nil)
		if err == nil && resp.StatusCode == http.StatusPartialContent {
			return resp, nil
		}
		if err == nil {
			drain(resp)
		}
		r.mu.Lock()
		delete(r.redirects, u)
		r.mu.Unlock()
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	return r.requestOrigin(ctx, host, repo, u, rng, "")
}

// requestOrigin asks the registry itself, twice if it wants a token first, and follows redirects.
func (r *Registry) requestOrigin(ctx context.Context, host docker.RegistryHost, repo Repository, u, rng, accept string) (*http.Response, error) {
	ctx = docker.ContextWithAppendPullRepositoryScope(ctx, repo.Path)
	var refused []*http.Response
	for {
		resp, err := r.get(ctx, host, u, rng, accept, host.Authorizer)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || host.Authorizer == nil || len(refused) >= 2 {
			return r.follow(ctx, host, u, rng, accept, resp)
		}
		drain(resp)
		refused = append(refused, resp)
		if err := host.Authorizer.AddResponses(ctx, refused); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrUnauthorized, host.Host, hide(err))
		}
	}
}

// follow goes where a redirect leads and remembers the place if it serves the range.
func (r *Registry) follow(ctx context.Context, host docker.RegistryHost, from, rng, accept string, resp *http.Response) (*http.Response, error) {
	for range maxRedirects {
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			if at := resp.Request.URL.String(); at != from && resp.StatusCode == http.StatusPartialContent {
				r.mu.Lock()
				r.redirects[from] = redirect{url: at, until: time.Now().Add(redirectTTL)}
				r.mu.Unlock()
			}
			return resp, nil
		}
		drain(resp)
		to, err := resp.Location()
		if err != nil {
			return nil, fmt.Errorf("redirect by %s: %w", resp.Request.URL.Host, err)
		}
		if to.Scheme != "https" && (to.Scheme != "http" || resp.Request.URL.Scheme == "https") {
			return nil, fmt.Errorf("redirect by %s from %s to %s is refused", resp.Request.URL.Host, resp.Request.URL.Scheme, to.Scheme)
		}
		var auth docker.Authorizer
		if to.Host == host.Host {
			auth = host.Authorizer
		}
		if resp, err = r.get(ctx, host, to.String(), rng, accept, auth); err != nil {
			return nil, err
		}
	}
	drain(resp)
	return nil, fmt.Errorf("%s redirects more than %d times", host.Host, maxRedirects)
}

// get makes one HTTP request and follows nothing.
func (r *Registry) get(ctx context.Context, host docker.RegistryHost, u, rng, accept string, auth docker.Authorizer) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, hide(err)
	}
	if req.URL.Host == host.Host {
		for k, v := range host.Header {
			req.Header[k] = append([]string(nil), v...)
		}
	}
	req.Header.Set("Accept-Encoding", "identity")
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if auth != nil {
		if err := auth.Authorize(ctx, req); err != nil {
			return nil, tokenError(host.Host, err)
		}
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if host.Client != nil {
		client.Transport = host.Client.Transport
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, hide(err)
	}
	return resp, nil
}

// tokenError says what a token server's refusal means.
func tokenError(host string, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errors.As(err, &status):
		err = fmt.Errorf("%w: token server: %s", &StatusError{Host: host, Status: status.StatusCode}, status.Status)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		err = fmt.Errorf("%w: %w", ErrUnauthorized, err)
	}
	return fmt.Errorf("token for %s: %w", host, hide(err))
}

// drain ends an answer that is of no use, keeping its connection if little is left of it.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10) // only for the connection's sake
	resp.Body.Close()
}

func blobURL(host docker.RegistryHost, repo Repository, dgst string) string {
	u := url.URL{Scheme: host.Scheme, Host: host.Host, Path: host.Path + "/" + repo.Path + "/blobs/" + dgst}
	if isMirror(host.Host, repo.Host) {
		u.RawQuery = url.Values{"ns": {repo.Host}}.Encode()
	}
	return u.String()
}

// isMirror says when the query parameter ns names the registry that a host stands in for, as in
// containerd.
func isMirror(host, registry string) bool {
	return host != registry && (registry != "docker.io" || host != "registry-1.docker.io")
}
