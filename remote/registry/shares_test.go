package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/internal/backoff"
)

var anyDigest = digest.Digest("sha256:" + strings.Repeat("0", 64))

// dripping is a body of which a byte comes now and then.
type dripping struct{ every time.Duration }

func (d dripping) Read(p []byte) (int, error) {
	time.Sleep(d.every)
	return copy(p, "x"), nil
}

func (dripping) Close() error { return nil }

// TestDrips: a server that sends hardly anything is given up after a minute, and one that a slow reader keeps waiting, or that is
// only slow, is not.
func TestDrips(t *testing.T) {
	for _, c := range []struct {
		name         string
		every, pause time.Duration // between bytes, and of the reader between its reads
		drips        bool
	}{
		{"a byte every 29 s", 29 * time.Second, 0, true},
		{"a hundred bytes a second", 10 * time.Millisecond, 0, true},
		{"two hundred bytes a second", 5 * time.Millisecond, 0, false},
		{"a slow reader", time.Millisecond, time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				rates := [2]*rate{{window: rateWindow}, {window: time.Hour}}
				r := &stallReader{body: dripping{c.every}, cancel: cancel, ctx: ctx, stall: 30 * time.Second, host: "h", rates: rates}
				began := time.Now()
				var err error
				for err == nil && time.Since(began) < 5*time.Minute {
					_, err = r.Read(make([]byte, 100))
					time.Sleep(c.pause)
				}
				if errors.Is(err, errDrips) != c.drips || err != nil && !Retryable(err) {
					t.Errorf("after %s: %v", time.Since(began), err)
				}
				if took := time.Since(began); c.drips && took > rateWindow+c.every {
					t.Errorf("given up after %s", took)
				}
				cancel(nil)
			})
		})
	}
}

// broken is a body that brings n bytes after a while, and then ends after another, or with the request.
type broken struct {
	ctx           context.Context // of the request
	n             int64
	before, after time.Duration
}

func (b *broken) Read(p []byte) (int, error) {
	wait := b.before
	if b.before = 0; b.n == 0 {
		wait = b.after
	}
	if err := backoff.Sleep(b.ctx, wait); err != nil {
		return 0, err
	}
	n := min(b.n, int64(len(p)))
	if b.n -= n; n == 0 {
		return 0, io.EOF
	}
	return int(n), nil
}

func (*broken) Close() error { return nil }

// TestConnectionsThatDrip: a server that sends hardly anything is given up, however many connections it spreads that over, and
// is not asked again for each byte. Connections that are cut, or silent for a while, are made again.
func TestConnectionsThatDrip(t *testing.T) {
	const size, silence = 1 << 20, 28 * time.Second
	for _, c := range []struct {
		name     string
		header   time.Duration // until it comes
		each     func(connection int) broken
		drips    bool
		requests int
		atMost   time.Duration
	}{
		{"a byte, and silence", 0, func(int) broken { return broken{n: 1, after: silence} }, true, 12, 6 * time.Minute},
		{"silence, and a byte", 0, func(int) broken { return broken{n: 1, before: silence} }, true, 12, 6 * time.Minute},
		{"a byte after a header that is slow", silence, func(int) broken { return broken{n: 1} }, true, 14, 6 * time.Minute},
		{"a byte", 0, func(int) broken { return broken{n: 1} }, true, 600, 6 * time.Minute},
		{"cut after 64 KiB", 0, func(int) broken { return broken{n: muchBetween} }, false, size / muchBetween, 0},
		{"cut after 10 KiB", 0, func(int) broken { return broken{n: 10 << 10} }, false, 103, 2 * time.Minute},
		{"silent four times", 0, func(i int) broken {
			if i < 4 {
				return broken{after: time.Hour}
			}
			return broken{n: size, before: silence}
		}, false, 5, 3 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				r := New(Options{})
				requests := 0
				serve := roundTrip(func(req *http.Request) (*http.Response, error) {
					body := c.each(requests)
					body.ctx = req.Context()
					requests++
					var from, to int64
					if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
						return nil, err
					}
					h := http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", from, to, size)}}
					if err := backoff.Sleep(req.Context(), c.header); err != nil {
						return nil, err
					}
					return &http.Response{StatusCode: http.StatusPartialContent, Header: h, ContentLength: -1, Body: &body, Request: req}, nil
				})
				r.hosts.Add("reg.test", cachedHosts{until: time.Now().Add(2 * time.Hour), hosts: []docker.RegistryHost{{
					Client: &http.Client{Transport: serve}, Scheme: "https", Host: "reg.test", Path: "/v2", Capabilities: docker.HostCapabilityPull,
				}}})
				began := time.Now()
				in, err := r.Blob(Repository{Host: "reg.test", Path: "a"}, anyDigest, size).Open(ctx, 0, size, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer in.Close()
				n, err := io.Copy(io.Discard, in)
				took := time.Since(began)
				t.Logf("%d bytes by %d requests in %s: %v", n, requests, took, err)
				if errors.Is(err, errDrips) != c.drips || !c.drips && (err != nil || n != size) || err != nil && !Retryable(err) {
					t.Errorf("got %d bytes, %v", n, err)
				}
				if took > c.atMost || requests > c.requests {
					t.Errorf("%d requests in %s", requests, took)
				}
			})
		})
	}
}

// TestRepositoriesShareAHost: a repository that holds on to all the requests that it can get leaves another one of its registry some,
// and where the host gets few, since it has said that it is asked too much, the two take turns.
func TestRepositoriesShareAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPace(Retry{}.withDefaults())
		ctx, cancel := context.WithCancel(t.Context())
		var held atomic.Int64
		var all sync.WaitGroup
		flood := func(done func(release func())) {
			for range 2 * maxAsked {
				all.Go(func() {
					if release, err := p.enter(ctx, "reg.test", "reg.test/flood"); err == nil {
						held.Add(1)
						done(release)
					}
				})
			}
			synctest.Wait()
		}
		one := func() time.Duration {
			began := time.Now()
			release, err := p.enter(t.Context(), "reg.test", "reg.test/other")
			if err != nil {
				t.Fatal(err)
			}
			release()
			return time.Since(began)
		}
		gone := make(chan struct{})
		flood(func(release func()) { <-gone; release() })
		if n := held.Load(); n != maxAskedWithin {
			t.Errorf("one repository alone has %d requests", n)
		}
		for range 10 {
			if took := one(); took != 0 {
				t.Errorf("the other one waited %s", took)
			}
		}
		cancel()
		close(gone)
		all.Wait()

		ctx = t.Context()
		p.answered("reg.test/flood", answer(http.StatusTooManyRequests, ""), time.Now()) // it has one request now
		time.Sleep(firstPause)
		const each = 100 * time.Millisecond
		flood(func(release func()) { time.Sleep(each); release() })
		if took := one(); took > 2*each {
			t.Errorf("with one request at a time, the other one waited %s", took)
		}
		all.Wait()
		for range maxAsked { // that it is asked as before
			time.Sleep(time.Second)
			p.answered("reg.test/flood", answer(http.StatusPartialContent, ""), time.Now())
		}
		ctx, cancel = context.WithCancel(t.Context())
		held.Store(0)
		gone = make(chan struct{})
		flood(func(release func()) { <-gone; release() })
		if n := held.Load(); n != maxAskedWithin {
			t.Errorf("afterwards, one repository alone has %d requests", n)
		}
		cancel()
		close(gone)
		all.Wait()
	})
}

// TestHostIsShared: registries that all lead to one host have a bounded number of requests there, whoever named it, and those
// that hold on to theirs leave room for another.
func TestHostIsShared(t *testing.T) {
	var under, most atomic.Int64
	release := make(chan struct{})
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := under.Add(1)
		defer under.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if strings.HasSuffix(r.URL.Path, "/held") {
			<-release
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, 100)))
	}))
	defer store.Close()
	r := New(Options{Stall: time.Hour, Retry: Retry{Attempts: 1}})
	read := func(registry *httptest.Server) error {
		b := r.Blob(Repository{Host: registry.Listener.Addr().String(), Path: "a"}, anyDigest, 100)
		in, err := b.Open(t.Context(), 0, 100, 0)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, in)
		return errors.Join(err, in.Close())
	}
	leads := func(to string) *httptest.Server {
		s := httptest.NewServer(http.RedirectHandler(store.URL+to, http.StatusTemporaryRedirect))
		t.Cleanup(s.Close)
		return s
	}
	var all sync.WaitGroup
	for n := range 4 {
		registry := leads(fmt.Sprint("/", n, "/held"))
		for range 80 {
			all.Go(func() {
				if err := read(registry); err != nil {
					t.Error(err)
				}
			})
		}
	}
	for under.Load() <= maxAskedOfOne {
		time.Sleep(time.Millisecond)
	}
	other := leads("/other")
	for range 10 {
		if err := read(other); err != nil {
			t.Error(err)
		}
	}
	close(release)
	all.Wait()
	if n := most.Load(); n > maxAsked {
		t.Errorf("%d requests at a time", n)
	}
	// Nothing is left of requests that were answered, refused, or given up.
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	for range maxAsked + 10 {
		if err := read(missing); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
}
