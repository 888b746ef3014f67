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

	"github.com/remora-storage/remora/internal/fair"
)

// An authorizer gives a host's requests credentials as containerd's does, but for this: that one keeps for ever that a token could not be
// had, though the server was busy, or the request that asked for it was given up; who waits for another's token cannot leave; and it
// asks wherever the registry says.
type authorizer struct {
	fresh func() docker.Authorizer
	led   atomic.Bool // servers of tokens are what somebody outside has named

	mu     sync.Mutex // guards the fields below
	shared docker.Authorizer
	scopes *lru.Cache // *scoped by scopes
}

// scoped is what authorizes requests of some scopes, one at a time.
type scoped struct {
	name string            // of the scopes
	turn chan struct{}     // holds a token while one is authorized, which guards by
	by   docker.Authorizer // shared, until a token could not be had
}

const knownScopes = 1024

func newAuthorizer(fresh func() docker.Authorizer) *authorizer {
	return &authorizer{fresh: fresh, shared: fresh(), scopes: lru.New(knownScopes)}
}

// enter waits for the turn of a context's scopes. leave must be called once.
func (a *authorizer) enter(ctx context.Context) (s *scoped, leave func(), err error) {
	name := strings.Join(docker.GetTokenScopes(ctx, nil), " ")
	a.mu.Lock()
	if known, ok := a.scopes.Get(name); ok {
		s = known.(*scoped)
	} else {
		s = &scoped{name: name, turn: make(chan struct{}, 1), by: a.shared}
		a.scopes.Add(name, s)
	}
	a.mu.Unlock()
	select {
	case s.turn <- struct{}{}:
		return s, func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
}

// AddResponses implements docker.Authorizer.
func (a *authorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	t, _ := responses[len(responses)-1].Request.Context().Value(tripKey{}).(*trip)
	if t != nil && t.led.Load() {
		a.led.Store(true)
	}
	s, leave, err := a.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return s.by.AddResponses(ctx, responses)
}

// Authorize implements docker.Authorizer.
func (a *authorizer) Authorize(ctx context.Context, req *http.Request) error {
	s, leave, err := a.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	trips, t := onTrip(ctx, req.URL.Scheme+"://"+req.URL.Host, a.led.Load())
	t.token = fair.User(req.URL.Host + " " + s.name) // a server of tokens is left alone by those alone whose tokens it fails to give
	if err := s.by.Authorize(trips, req); err != nil {
		s.by = a.fresh() // the next request asks anew
		return &tokenFailure{err, time.Duration(t.after.Load())}
	}
	return nil
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
