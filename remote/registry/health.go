package registry

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// health is what the last requests to one host say of it. A host that failed twice in a row is left out where one follows that did
// not: for firstHold, which doubles up to maxHold with each request that fails after that. Then one request at a time tries it.
type health struct {
	mu       sync.Mutex // guards the fields below
	failures int        // in a row
	err      error      // of the last
	hold     time.Duration
	until    time.Time // it is left out
	probing  bool
	told     time.Time // somebody last was told that it is left out

	rangeless      error     // its last answer to a request for a range was none; nil if it was one
	rangelessUntil time.Time // that counts
	rangesUntil    time.Time // it is taken for one that serves ranges
}

const (
	failuresHold = 2
	firstHold    = time.Second
	maxHold      = time.Minute
)

// enter returns nil if the host is to be asked now, by one request, which leave ends; or else why it is left out.
func (h *health) enter() (leave func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.outLocked(); err != nil {
		return nil, err
	}
	if h.failures < failuresHold {
		return func() {}, nil
	}
	h.probing = true
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.probing = false
	}, nil
}

func (h *health) outLocked() error {
	if h.failures >= failuresHold && (h.probing || time.Now().Before(h.until)) {
		return h.err
	}
	return nil
}

// out returns why the host is left out, or nil.
func (h *health) out() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.outLocked()
}

// served notes that the host does what it is for.
func (h *health) served() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures, h.hold, h.err = 0, 0, nil
}

// failed notes a request that began at a time and failed by the host. It returns for how long the host is left out from now on, or
// 0 if nothing changes: requests that began before the host was left out, or while it was, say nothing new.
func (h *health) failed(began time.Time, err error) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures++
	h.err = err
	if h.failures < failuresHold || h.hold > 0 && began.Before(h.until) {
		return 0
	}
	h.hold = min(max(2*h.hold, firstHold), maxHold)
	h.until = time.Now().Add(h.hold)
	return h.hold
}

// news reports whether somebody is to be told that the host is left out for so long. A host that now serves and now does not is left
// out for a second each time: that is told once a minute.
func (h *health) news(hold time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if hold == firstHold && time.Since(h.told) < maxHold {
		return false
	}
	h.told = time.Now()
	return true
}

// faulty reports whether an error is one of a host that is not there, or does not work. Any other answer shows that it does.
func faulty(err error) bool {
	var status *StatusError
	switch {
	case errors.As(err, &status):
		return status.Status >= http.StatusInternalServerError
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrRange), errors.Is(err, ErrNotPublic), errors.Is(err, ErrUnauthorized):
		return false
	}
	return err != nil
}

// judge notes what a request to a host came to. What ends with its caller's context says nothing.
func (r *Registry) judge(ctx context.Context, host string, h *health, began time.Time, err error) {
	switch {
	case ctx.Err() != nil:
	case !faulty(err):
		h.served()
	default:
		if hold := h.failed(began, err); hold > 0 && h.news(hold) {
			r.opts.Log.Info("registry host is left out where another one follows", "host", host, "for", hold, "err", err)
		}
	}
}

// healthOf returns a host's health, whichever registry it is asked for.
func (r *Registry) healthOf(scheme, host string) *health {
	key := healthKey(scheme, host)
	r.mu.Lock()
	defer r.mu.Unlock()
	if h, ok := r.healths.Get(key); ok {
		return h.(*health)
	}
	h := new(health)
	r.healths.Add(key, h)
	return h
}

func healthKey(scheme, host string) string { return scheme + "://" + host }

// lackHolds is how long a mirror is believed that it has no such blob.
const lackHolds = time.Minute

// lack is a mirror's answer that it has no such blob.
type lack struct {
	until time.Time
	err   error
}

// lacks returns a mirror's answer of lately that it lacks a blob, or nil.
func (r *Registry) lacks(blob string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.lacking.Get(blob)
	if l, _ := known.(lack); ok && time.Now().Before(l.until) {
		return l.err
	}
	return nil
}

// noteLack remembers it, if err says so.
func (r *Registry) noteLack(blob string, err error) {
	var status *StatusError
	if !errors.As(err, &status) || status.Status != http.StatusNotFound {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lacking.Add(blob, lack{time.Now().Add(lackHolds), err})
}
