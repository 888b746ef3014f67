package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/internal/fair"
)

const (
	maxRedirects = 9               // as containerd follows
	maxURL       = 16 << 10        // bytes of one that is remembered: signed ones have one or two KiB
	redirectTTL  = 5 * time.Minute // signed URLs commonly live longer; one that does not is dropped when it fails
)

// redirect is where a host sent us for a blob.
type redirect struct {
	url   string
	until time.Time
	led   bool // of its trip
}

// request makes one GET of a blob at one host, and follows where it is redirected. It returns any answer but a redirect.
func (r *Registry) request(ctx context.Context, host docker.RegistryHost, repo Repository, dgst, rng string) (*http.Response, error) {
	u := blobURL(host, repo, dgst)
	r.mu.Lock()
	known, cached := r.redirects.Get(u)
	r.mu.Unlock()
	if to, _ := known.(redirect); cached && time.Now().Before(to.until) {
		ctx, _ := onTrip(ctx, host.Scheme+"://"+host.Host, to.led)
		resp, err := r.get(ctx, host, repo, to.url, rng, "")
		if err == nil && (served(resp, rng) || resp.StatusCode == http.StatusOK) || errors.As(err, new(*busyError)) {
			return resp, err
		}
		if err == nil {
			drain(resp)
		}
		r.mu.Lock()
		r.redirects.Remove(u)
		r.mu.Unlock()
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	return r.requestOrigin(ctx, host, repo, u, rng, "")
}

// served reports whether an answer is what was asked for.
func served(resp *http.Response, rng string) bool {
	return resp.StatusCode == http.StatusPartialContent || rng == "" && resp.StatusCode == http.StatusOK
}

// requestOrigin asks the registry itself and follows redirects.
func (r *Registry) requestOrigin(
	ctx context.Context, host docker.RegistryHost, repo Repository, u, rng, accept string,
) (*http.Response, error) {
	ctx = docker.ContextWithAppendPullRepositoryScope(ctx, repo.Path)
	t, _ := ctx.Value(tripKey{}).(*trip)
	if t == nil {
		ctx, t = onTrip(ctx, host.Scheme+"://"+host.Host, false)
	}
	resp, err := r.get(ctx, host, repo, u, rng, accept)
	if err != nil {
		return nil, err
	}
	return r.follow(ctx, t, host, repo, u, rng, accept, resp)
}

// follow goes where a redirect leads and remembers the place if it serves the range.
func (r *Registry) follow(
	ctx context.Context, t *trip, host docker.RegistryHost, repo Repository, from, rng, accept string, resp *http.Response,
) (*http.Response, error) {
	for range maxRedirects {
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			at := resp.Request.URL.String()
			if at != from && len(at) <= maxURL && served(resp, rng) {
				r.mu.Lock()
				r.redirects.Add(from, redirect{url: at, until: time.Now().Add(redirectTTL), led: t.led.Load()})
				r.mu.Unlock()
			}
			return resp, nil
		}
		drain(resp)
		to, err := resp.Location()
		if err != nil {
			return nil, fmt.Errorf("redirect by %s: %w", resp.Request.URL.Host, err)
		}
		if !mayLead(from, resp.Request.URL, to) {
			return nil, fmt.Errorf("redirect by %s from %s to %s is refused", resp.Request.URL.Host, resp.Request.URL.Scheme, to.Scheme)
		}
		by := resp.Request.URL.Host
		t.redirected.Store(true)
		if resp, err = r.get(ctx, host, repo, to.String(), rng, accept); err != nil {
			return nil, fmt.Errorf("redirect by %s: %w", by, err)
		}
	}
	drain(resp)
	return nil, fmt.Errorf("%s redirects more than %d times", host.Host, maxRedirects)
}

// mayLead reports whether a redirect of a request that began at a URL may be followed. From HTTPS it may lead to plain HTTP, as for
// containerd, if a digest says what must come: nobody on the way can change it unseen.
func mayLead(from string, by, to *url.URL) bool {
	switch to.Scheme {
	case "https":
		return true
	case "http":
		return by.Scheme == "http" || namesDigest(from)
	}
	return false
}

// namesDigest reports whether a URL is a blob's or a manifest's by its digest.
func namesDigest(u string) bool {
	parsed, err := url.Parse(u)
	if err != nil {
		return false
	}
	dir, name := path.Split(parsed.Path)
	return (strings.HasSuffix(dir, "/blobs/") || strings.HasSuffix(dir, "/manifests/")) && digest.Digest(name).Validate() == nil
}

// get makes one request, with what the host gets if it is for the host, and follows nothing. It waits until the host that is
// asked has room for one more of the repository.
func (r *Registry) get(ctx context.Context, host docker.RegistryHost, repo Repository, u, rng, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, hide(err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	client := clientOf(host)
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	pace := r.pace(req.URL.Host)
	who := fair.User(repo.String())
	release, err := pace.enter(ctx, req.URL.Host, who)
	if Unasked(err) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%s has as many requests as it gets: %w", req.URL.Host, err)
	}
	began := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		release()
		return nil, clean(err)
	}
	pace.answered(who, resp, began)
	resp.Body = &countedBody{ReadCloser: resp.Body, release: sync.OnceFunc(release)}
	if err := unpack(resp); err != nil {
		resp.Body.Close() // nothing of it is of use
		return nil, err
	}
	return resp, nil
}

// countedBody is an answer whose end lets another request begin.
type countedBody struct {
	io.ReadCloser
	release func()
}

func (b *countedBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
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
