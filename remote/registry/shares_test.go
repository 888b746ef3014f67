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

	"github.com/opencontainers/go-digest"
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
				r := &stallReader{body: dripping{c.every}, cancel: cancel, ctx: ctx, stall: 30 * time.Second, host: "h"}
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
