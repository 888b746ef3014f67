package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang/groupcache/lru"

	"github.com/remora-storage/remora/internal/backoff"
	"github.com/remora-storage/remora/internal/fair"
)

// A pace is what one host takes: how many requests at a time, shared by the registries for which it is asked and by the repositories of
// each, and when. A host that says that it is asked too much (429, RFC 6585, section 4, or 503 with Retry-After, RFC 9110, section
// 10.2.3) is left alone for as long as it says, or for a second, which doubles; after that it gets a quarter of the requests that it
// had. One more each second goes until it has all of them again. While it is to be left alone for more than a minute, requests fail
// instead of waiting: their callers may have another way.
type pace struct {
	pool *fair.Pool[fair.User]

	mu    sync.Mutex // guards the fields below
	limit int
	under int       // requests under way
	until time.Time // it is left alone
	pause time.Duration
	grown time.Time // when the limit was changed last

	outages *lru.Cache      // *outage by the repository that is asked for
	waits   backoff.Backoff // of an outage
	era     *atomic.Int64   // Registry.era
}

// Requests for blobs that one host gets at once, wherever it was named: by references, as a mirror, by redirects or by layers'
// URLs. One repository's layers in use ask for fewer (cache/fetch/sched.go): this is for many that lead to one host.
const (
	maxAsked       = 128
	maxAskedOfOne  = 64
	maxAskedWithin = 48 // of those of one registry, one repository's

	firstPause = time.Second
	maxPause   = 8 * time.Second // where a host does not say how long
	maxAfter   = time.Hour       // where it does
	maxRest    = time.Minute     // that is waited for
)

type beforeBulkKey struct{}

// BeforeBulk returns a context whose requests get the next place at a host that has as many requests as it gets. It is for small
// ones that somebody waits for, such as a layer's proof.
func BeforeBulk(ctx context.Context) context.Context {
	return context.WithValue(ctx, beforeBulkKey{}, true)
}

func newPace(outages Retry) *pace {
	return &pace{
		pool: fair.NewTieredPool(maxAsked, maxAskedOfOne, maxAskedWithin), limit: maxAsked, pause: firstPause,
		outages: lru.New(knownHosts), waits: backoff.Backoff{First: outages.First, Max: outages.Max}, era: new(atomic.Int64),
	}
}

type briskKey struct{}

// A busyError is why a host is not asked now by a request that may go to another one: it has said that it is asked too much.
type busyError struct{ wait time.Duration } // at least

func (e *busyError) Error() string { return "it has said that it is asked too much" }

// A restError is why a host is not asked now: it has named a time that is too far away to be waited for, or it fails.
type restError struct {
	*StatusError
	why string
}

func (e *restError) Unwrap() error { return e.StatusError }
func (e *restError) Error() string {
	return fmt.Sprintf("%s is left alone for another %s, %s", e.Host, roughly(e.RetryAfter), e.why)
}

// Unasked reports whether an error is that of a request which was not made, since its host is left alone.
func Unasked(err error) bool { return errors.As(err, new(*restError)) }

// Rest returns once a host may be asked again that err says was left alone, and reports whether that is so. It waits no longer than most.
func Rest(ctx context.Context, err error, most time.Duration) bool {
	var rest *restError
	return errors.As(err, &rest) && rest.RetryAfter <= most && backoff.Sleep(ctx, rest.RetryAfter) == nil
}

// enter waits until the host may be asked once more for a repository. release must be called once. A brisk request waits for no host
// that has said that it is asked too much, and gets a busyError. None waits for a host that fails: it gets a restError.
func (p *pace) enter(ctx context.Context, host string, who fair.User) (release func(), err error) {
	for {
		release, err := p.place(ctx, host, who)
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		if time.Now().Before(p.until) { // since others were answered meanwhile
			p.mu.Unlock()
			release()
			continue
		}
		if err := p.outLocked(host, who); err != nil {
			p.mu.Unlock()
			release()
			return nil, err
		}
		p.under++
		p.mu.Unlock()
		return func() {
			p.mu.Lock()
			p.under--
			p.mu.Unlock()
			release()
		}, nil
	}
}

// place waits for one of the requests that the host gets, and until it is no longer left alone.
func (p *pace) place(ctx context.Context, host string, who fair.User) (release func(), err error) {
	if ctx.Value(briskKey{}) != nil {
		p.mu.Lock()
		wait, fewer := time.Until(p.until), p.limit < maxAsked
		p.mu.Unlock()
		if wait > 0 {
			return nil, &busyError{wait}
		}
		if fewer {
			release, ok := p.pool.Try(who)
			if !ok {
				return nil, &busyError{}
			}
			return release, nil
		}
	}
	if err := p.rest(ctx, host); err != nil {
		return nil, err
	}
	if ctx.Value(beforeBulkKey{}) != nil {
		return p.pool.AcquireFirst(ctx, who)
	}
	return p.pool.Acquire(ctx, who)
}

// rest waits until the host is no longer left alone, unless that is long.
func (p *pace) rest(ctx context.Context, host string) error {
	p.mu.Lock()
	wait := time.Until(p.until)
	p.mu.Unlock()
	if wait > maxRest {
		asked := &StatusError{Host: host, Status: http.StatusTooManyRequests, RetryAfter: wait}
		return &restError{StatusError: asked, why: "as it has asked for"}
	}
	return backoff.Sleep(ctx, wait)
}

// awaitRest is enter for a request that needs no place.
func (p *pace) awaitRest(ctx context.Context, host string, who fair.User) error {
	p.mu.Lock()
	wait := time.Until(p.until)
	p.mu.Unlock()
	if wait > 0 && ctx.Value(briskKey{}) != nil {
		return &busyError{wait}
	}
	if err := p.rest(ctx, host); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.outLocked(host, who)
}

// roughly rounds what is left of a wait.
func roughly(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

// answered notes what the host has answered to a repository's request that began at a time.
func (p *pace) answered(who fair.User, resp *http.Response, began time.Time) {
	after := retryAfter(resp.Header.Get("Retry-After"))
	tooMuch := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable && after > 0
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !tooMuch {
		p.heardLocked(who, resp.StatusCode, began, now)
	}
	switch {
	case tooMuch && began.Before(p.grown) && p.limit < maxAsked: // it was asked before it said so the last time
		p.until = later(p.until, now.Add(min(after, maxAfter)))
	case tooMuch:
		p.until = later(p.until, now.Add(min(max(after, p.pause), maxAfter)))
		p.pause = min(2*p.pause, maxPause)
		p.resizeLocked(max(min(p.limit, p.under)/4, 1), now)
	case p.limit < maxAsked && now.Sub(p.grown) >= time.Second:
		p.pause = firstPause
		p.resizeLocked(p.limit+1, now)
	}
}

func (p *pace) resizeLocked(limit int, now time.Time) {
	p.limit, p.grown = limit, now
	p.pool.Resize(limit, max(limit*maxAskedOfOne/maxAsked, 1))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pace returns a host's.
func (r *Registry) pace(host string) *pace {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, ok := r.paces.Get(host); ok {
		return p.(*pace)
	}
	p := newPace(r.opts.Retry)
	p.era = &r.era
	r.paces.Add(host, p)
	return p
}
