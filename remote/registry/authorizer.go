package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/golang/groupcache/lru"
)

// An authorizer gives a host's requests credentials as containerd's does, but for two things. That one keeps for ever that a token could
// not be had, though the server was busy, or the request that asked for it was given up. And it asks wherever the registry says.
type authorizer struct {
	fresh func() docker.Authorizer
	led   atomic.Bool // servers of tokens are what somebody outside has named

	mu     sync.Mutex // guards the fields below
	shared docker.Authorizer
	apart  *lru.Cache // docker.Authorizer by scopes of which a token could not be had from shared
}

const knownScopes = 1024

func newAuthorizer(fresh func() docker.Authorizer) *authorizer {
	return &authorizer{fresh: fresh, shared: fresh(), apart: lru.New(knownScopes)}
}

// of returns what authorizes requests of a context, and a name of their scopes.
func (a *authorizer) of(ctx context.Context) (docker.Authorizer, string) {
	scopes := strings.Join(docker.GetTokenScopes(ctx, nil), " ")
	a.mu.Lock()
	defer a.mu.Unlock()
	if own, ok := a.apart.Get(scopes); ok {
		return own.(docker.Authorizer), scopes
	}
	return a.shared, scopes
}

// failed has the next request of some scopes ask anew.
func (a *authorizer) failed(used docker.Authorizer, scopes string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.shared
	if own, ok := a.apart.Get(scopes); ok {
		now = own.(docker.Authorizer)
	}
	if now == used { // or somebody has seen to it
		a.apart.Add(scopes, a.fresh())
	}
}

// AddResponses implements docker.Authorizer.
func (a *authorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	t, _ := responses[len(responses)-1].Request.Context().Value(tripKey{}).(*trip)
	if t != nil && t.led.Load() {
		a.led.Store(true)
	}
	by, _ := a.of(ctx)
	return by.AddResponses(ctx, responses)
}

// Authorize implements docker.Authorizer.
func (a *authorizer) Authorize(ctx context.Context, req *http.Request) error {
	by, scopes := a.of(ctx)
	trips, t := onTrip(ctx, req.URL.Scheme+"://"+req.URL.Host, a.led.Load())
	t.token = true
	err := by.Authorize(trips, req)
	if err == nil {
		return nil
	}
	a.failed(by, scopes)
	if ctx.Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return nil // another request was given up that had asked for both: the answer to this one will have us ask again
	}
	return &tokenFailure{err, time.Duration(t.after.Load())}
}

// A tokenFailure is why a token could not be had.
type tokenFailure struct {
	err   error
	after time.Duration // as in StatusError
}

func (e *tokenFailure) Error() string { return e.err.Error() }
func (e *tokenFailure) Unwrap() error { return e.err }

// tokenError says what a token server's refusal means.
func tokenError(host string, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errors.As(err, &status):
		refusal := &StatusError{Host: host, Status: status.StatusCode}
		if u, err := url.Parse(status.RequestURL); err == nil && u.Host != "" {
			refusal.Host = u.Host
		}
		if f := (*tokenFailure)(nil); errors.As(err, &f) {
			refusal.RetryAfter = f.after
		}
		err = fmt.Errorf("%w: token server: %s", refusal, status.Status)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		err = fmt.Errorf("%w: %w", ErrUnauthorized, err)
	}
	return fmt.Errorf("token for %s: %w", host, hide(err))
}
