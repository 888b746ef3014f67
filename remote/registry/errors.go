package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// Errors that callers act on.
var (
	// ErrRange says that a server does not answer range requests as HTTP has them.
	ErrRange = errors.New("server does not serve the range asked for")
	// ErrNotFound says that the registry has no such blob or manifest.
	ErrNotFound = errors.New("not found in the registry")
	// ErrNotPublic says that the registry, or the image, leads to an address that it may not lead to. What is there is not known, and
	// another answer of the registry or of the name service may end it.
	ErrNotPublic = errors.New("no public address")
	// ErrUnauthorized says that the registry wants other credentials.
	ErrUnauthorized = errors.New("registry refuses the credentials")
)

// A StatusError is an answer of a registry other than the one hoped for.
type StatusError struct {
	Host       string
	Status     int
	RetryAfter time.Duration // 0 if the server named none
	Redirected bool          // it is the answer of a place to which the registry has sent us: it says something of one blob alone
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s answers %d %s", e.Host, e.Status, http.StatusText(e.Status))
}

// Is lets errors.Is find the sentinel that a status stands for.
func (e *StatusError) Is(target error) bool {
	switch e.Status {
	case http.StatusNotFound:
		return target == ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return target == ErrUnauthorized
	}
	return false
}

func statusError(resp *http.Response) error {
	t, _ := resp.Request.Context().Value(tripKey{}).(*trip)
	return &StatusError{
		Host: resp.Request.URL.Host, Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After")),
		Redirected: t != nil && t.redirected.Load(),
	}
}

func retryAfter(v string) time.Duration {
	if s, err := strconv.Atoi(strings.TrimSpace(v)); err == nil && s >= 0 && s < 1<<20 {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(time.Until(t), 0)
	}
	return 0
}

// Retryable is the one place that decides whether asking the same server again may help.
func Retryable(err error) bool {
	var once *tryOnce
	if errors.As(err, &once) {
		return true
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	var status *StatusError
	if errors.As(err, &status) {
		switch status.Status {
		case http.StatusTooManyRequests, http.StatusRequestTimeout:
			return true
		}
		return fails(status.Status)
	}
	var broken *brokenError
	switch {
	case errors.As(err, &broken):
		return true
	case errors.Is(err, ErrRange), errors.Is(err, ErrNotPublic), errors.Is(err, docker.ErrInvalidAuthorization):
		return false
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, errStalled), errors.Is(err, errDrips),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPIPE):
		return true
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.IsTemporary || dns.IsTimeout
	}
	var network net.Error
	return errors.As(err, &network) && network.Timeout() || isTransport(err)
}

// A brokenError is one of an answer that ended before its end. Those of HTTP/2 are of types that no other package can name.
type brokenError struct{ error }

func (e *brokenError) Unwrap() error { return e.error }

// isTransport reports whether err came from under HTTP: a connection that broke. Certificate
// errors come that way too, and no retry helps them.
func isTransport(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || isHTTP2(err)
}

// isHTTP2 reports whether a request failed by HTTP/2: a server that sends its clients away (GOAWAY), or resets a stream. net/http
// has types of its own for that, and sends a request again only where it surely was not looked at.
func isHTTP2(err error) bool {
	var u *url.Error
	if !errors.As(err, &u) {
		return false
	}
	says := u.Err.Error()
	return strings.HasPrefix(says, "http2: ") || strings.HasPrefix(says, "stream error: stream ID ")
}

// hide takes the query out of the URLs that net/http puts into its errors: it may be signed.
func hide(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	clean := *u
	if parsed, perr := url.Parse(u.URL); perr == nil {
		parsed.RawQuery, parsed.User = "", nil
		clean.URL = parsed.String()
	} else {
		clean.URL = "(url)"
	}
	return &clean
}
