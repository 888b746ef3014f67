package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// tokenRegistry is a registry with a blob of one byte, and its server of tokens. It returns a reader of the blob.
func tokenRegistry(t *testing.T, token func(w http.ResponseWriter, r *http.Request) bool, retry Retry) (
	read func(context.Context) error, tokens *atomic.Int64,
) {
	t.Helper()
	b := newTokenBed(t, token, retry)
	return func(ctx context.Context) error { return b.read(ctx, "app") }, &b.tokens
}

// A tokenBed is a registry that has a blob of one byte in each repository, its server of tokens, and a client.
type tokenBed struct {
	*Registry
	host   string
	tokens atomic.Int64 // that were asked for
}

func newTokenBed(t *testing.T, token func(w http.ResponseWriter, r *http.Request) bool, retry Retry) *tokenBed {
	t.Helper()
	b := new(tokenBed)
	auth := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.tokens.Add(1)
		if token(w, r) {
			_ = json.NewEncoder(w).Encode(map[string]string{"token": "t"}) // or the client is gone
		}
	}))
	t.Cleanup(auth.Close)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer t" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s"`, auth.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("x"))
	}))
	t.Cleanup(s.Close)
	b.host = s.Listener.Addr().String()
	var logins Logins
	if _, err := logins.Set(b.host, Login{PlainHTTP: true}); err != nil {
		t.Fatal(err)
	}
	b.Registry = New(Options{Logins: &logins, Retry: retry})
	return b
}

// read reads the blob of a repository.
func (b *tokenBed) read(ctx context.Context, repo string) error {
	_, err := b.Blob(Repository{b.host, repo}, digest.FromString("x"), 1).ReadAt(ctx, make([]byte, 1), 0)
	return err
}

// TestTokenServerFails: a token server that fails for a moment is asked again, and what it has answered is not kept for its answer.
func TestTokenServerFails(t *testing.T) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusInternalServerError} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			first := atomic.Bool{}
			read, tokens := tokenRegistry(t, func(w http.ResponseWriter, _ *http.Request) bool {
				if first.Swap(true) {
					return true
				}
				w.WriteHeader(status)
				return false
			}, Retry{Attempts: 3, First: time.Millisecond})
			for range 2 {
				if err := read(t.Context()); err != nil || tokens.Load() != 2 {
					t.Errorf("%v; the token server was asked %d times", err, tokens.Load())
				}
			}
		})
	}
}

// TestTokenServerRests: a token server that says how long it is to be left alone is, by all requests, and the error says whose time it is.
func TestTokenServerRests(t *testing.T) {
	read, tokens := tokenRegistry(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "600")
		w.WriteHeader(http.StatusTooManyRequests)
		return false
	}, Retry{})
	for range 3 {
		var status *StatusError
		if err := read(t.Context()); !errors.As(err, &status) || status.Status != http.StatusTooManyRequests || !Retryable(err) ||
			status.RetryAfter < 9*time.Minute || status.RetryAfter > 10*time.Minute {
			t.Errorf("got %v, %+v", err, status)
		}
	}
	if n := tokens.Load(); n != 1 {
		t.Errorf("the token server was asked %d times", n)
	}
}

// TestTokenServerOutage: a token server that answers 5xx twice in a row is left alone for a while, by the repository alone whose tokens it
// fails to give, until somebody asks for that.
func TestTokenServerOutage(t *testing.T) {
	for _, status := range []int{500, 502, 503, 504} {
		var out atomic.Bool
		out.Store(true)
		b := newTokenBed(t, func(w http.ResponseWriter, r *http.Request) bool {
			fails := out.Load() && strings.Contains(r.FormValue("scope"), ":bad:")
			if fails {
				w.WriteHeader(status)
			}
			return !fails
		}, Retry{Attempts: 1, First: time.Hour, Max: time.Hour})
		for i := range 5 {
			err := b.read(t.Context(), "bad")
			var said *StatusError
			if !errors.As(err, &said) || said.Status != status || !Retryable(err) || Unasked(err) != (i >= failuresHold) {
				t.Errorf("%d, %d before it: %v", status, i, err)
			}
		}
		if n := b.tokens.Load(); n != failuresHold {
			t.Errorf("%d: the token server was asked %d times", status, n)
		}
		if err := b.read(t.Context(), "good"); err != nil {
			t.Errorf("%d: another repository: %v", status, err)
		}
		out.Store(false)
		if err := b.read(t.Context(), "bad"); !Unasked(err) {
			t.Errorf("%d: before the time is over: %v", status, err)
		}
		b.Forgive()
		if err := b.read(t.Context(), "bad"); err != nil {
			t.Errorf("%d: forgiven: %v", status, err)
		}
	}
}

// TestTokenGivenUp: a request that is given up while its token is asked for fails no other one: neither one that waits for the same token,
// nor a later one.
func TestTokenGivenUp(t *testing.T) {
	asked, hold := make(chan struct{}), atomic.Bool{}
	read, _ := tokenRegistry(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if hold.Swap(true) {
			return true
		}
		close(asked)
		<-r.Context().Done()
		return false
	}, Retry{Attempts: 1})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if err := read(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
	})
	<-asked
	all.Go(func() { // it may be too late to wait for the same
		if err := read(t.Context()); err != nil {
			t.Errorf("another: %v", err)
		}
	})
	cancel()
	all.Wait()
	if err := read(t.Context()); err != nil {
		t.Errorf("later: %v", err)
	}
}

// TestTokenRefused: a token server that refuses has refused our credentials, and is not asked for the same again and again.
func TestTokenRefused(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		refuses := atomic.Bool{}
		refuses.Store(true)
		read, tokens := tokenRegistry(t, func(w http.ResponseWriter, _ *http.Request) bool {
			if refuses.Load() {
				w.WriteHeader(status)
			}
			return !refuses.Load()
		}, Retry{})
		if err := read(t.Context()); !errors.Is(err, ErrUnauthorized) || Retryable(err) {
			t.Errorf("%d: %v", status, err)
		}
		if n := tokens.Load(); n > 2 { // once more, since credentials may have changed
			t.Errorf("%d: asked %d times", status, n)
		}
		refuses.Store(false)
		if err := read(t.Context()); err != nil {
			t.Errorf("%d, which is over: %v", status, err)
		}
	}
}
