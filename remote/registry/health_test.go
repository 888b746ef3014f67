package registry

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// turnOf returns a turn of hosts, all of which may pull.
func turnOf(blob string, names ...string) turn {
	t := turn{needs: docker.HostCapabilityPull, repo: Repository{Host: "origin.test", Path: "app"}, blob: blob}
	for _, name := range names {
		t.hosts = append(t.hosts, docker.RegistryHost{Scheme: "https", Host: name, Path: "/v2", Capabilities: docker.HostCapabilityPull})
	}
	return t
}

// answers are what hosts do; each request is noted.
type answers struct {
	mu    sync.Mutex // guards the fields below
	errs  map[string]error
	asked map[string]int
}

func (a *answers) ask(_ context.Context, host docker.RegistryHost) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked == nil {
		a.asked = map[string]int{}
	}
	a.asked[host.Host]++
	return a.errs[host.Host]
}

var refused = &net.OpError{Op: "dial", Err: errors.New("connection refused")}

// TestRangesAreForgotten: a host is taken for one that serves no ranges, or that does, for a minute after its last answer to one.
func TestRangesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		for _, serves := range []bool{false, true, false} {
			h.ranges(serves, map[bool]error{false: ErrRange}[serves])
			for at, holds := range []bool{true, false} {
				if n, s := h.noRanges() != nil, h.servesRanges(); n != (holds && !serves) || s != (holds && serves) {
					t.Errorf("after %d minutes, having served one %v: none %v, some %v", at, serves, n, s)
				}
				time.Sleep(time.Minute)
			}
		}
	})
}

// TestHostIsLeftOut: a host that failed twice is left out for 1, 2, 4 … 60 s, each time until one request has failed; the last host
// is asked all the same.
func TestHostIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{})
		a := &answers{errs: map[string]error{"mirror.test": refused}}
		want := 2
		for range 50 {
			if _, err := r.ask(t.Context(), turnOf("", "mirror.test", "origin.test"), a.ask); err != nil {
				t.Fatal(err)
			}
		}
		for _, hold := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
			if a.asked["mirror.test"] != want {
				t.Fatalf("before %d s: asked %d times, want %d", hold, a.asked["mirror.test"], want)
			}
			want++
			time.Sleep(hold*time.Second - time.Millisecond)
			if _, err := r.ask(t.Context(), turnOf("", "mirror.test", "origin.test"), a.ask); err != nil {
				t.Fatal(err)
			}
			if a.asked["mirror.test"] != want-1 {
				t.Errorf("asked before %d s were over", hold)
			}
			time.Sleep(time.Millisecond)
			for range 10 {
				if _, err := r.ask(t.Context(), turnOf("", "mirror.test", "origin.test"), a.ask); err != nil {
					t.Fatal(err)
				}
			}
		}
		before := a.asked["mirror.test"]
		for range 5 { // it is all that there is
			_, err := r.ask(t.Context(), turnOf("", "mirror.test"), a.ask)
			if !errors.Is(err, refused) {
				t.Errorf("got %v", err)
			}
		}
		if n := a.asked["mirror.test"] - before; n != 5 {
			t.Errorf("the last host was asked %d times of 5", n)
		}
	})
}

// TestProbe: after its rest, one request at a time tries a host, and the first that is served ends all of it.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{})
		h := r.healthOf("https", "mirror.test")
		for range 30 { // requests that were under way together
			h.failed(time.Now(), refused)
		}
		if h.hold != firstHold {
			t.Errorf("it is left out for %s", h.hold)
		}
		time.Sleep(firstHold)
		release := make(chan struct{})
		probes := 0
		var all sync.WaitGroup
		for range 30 {
			all.Go(func() {
				_, err := r.ask(t.Context(), turnOf("", "mirror.test", "origin.test"), func(_ context.Context, host docker.RegistryHost) error {
					if host.Host == "mirror.test" {
						probes++
						<-release
						h.served()
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if probes != 1 {
			t.Errorf("%d requests try it", probes)
		}
		close(release)
		all.Wait()
		if err := h.out(); err != nil || h.failures != 0 {
			t.Errorf("it has served, and is left out: %v", err)
		}
	})
}

// TestWhatFails: what counts against a host, and what shows that it works.
func TestWhatFails(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"dial", refused, true},
		{"TLS", &x509.UnknownAuthorityError{}, true},
		{"silence", fmt.Errorf("h: %w", errStalled), true},
		{"drips", fmt.Errorf("h: %w", errDrips), true},
		{"a cut answer", io.ErrUnexpectedEOF, true},
		{"500", &StatusError{Status: 500}, true},
		{"503", &StatusError{Status: 503}, true},
		{"404", &StatusError{Status: 404}, false},
		{"401", &StatusError{Status: 401}, false},
		{"429", &StatusError{Status: 429}, false},
		{"no ranges", ErrRange, false},
		{"a place that is not public", notPublic("10.0.0.1"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := New(Options{})
				a := &answers{errs: map[string]error{"mirror.test": c.err}}
				for range 4 {
					if _, err := r.ask(t.Context(), turnOf("", "mirror.test", "origin.test"), a.ask); err != nil {
						t.Fatal(err)
					}
				}
				if left := a.asked["mirror.test"] == 2; left != c.want || !left && a.asked["mirror.test"] != 4 {
					t.Errorf("asked %d times of 4; left out is %v", a.asked["mirror.test"], c.want)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // nor what its caller ends
		r := New(Options{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		a := &answers{errs: map[string]error{"mirror.test": context.Canceled}}
		for range 4 {
			if _, err := r.ask(ctx, turnOf("", "mirror.test", "origin.test"), a.ask); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		if r.healthOf("https", "mirror.test").failures != 0 {
			t.Error("a call that was ended counts against the host")
		}
	})
}

// TestNoOtherHost: a host that failed is asked all the same where what follows fails, too: behind a mirror that fails for one image
// there may be a registry that this network does not reach.
func TestNoOtherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{})
		bad := &answers{errs: map[string]error{"mirror.test": &StatusError{Status: 500}, "origin.test": refused}}
		good := &answers{errs: map[string]error{"origin.test": refused}}
		for range 3 {
			if _, err := r.ask(t.Context(), turnOf("sha256:bad", "mirror.test", "origin.test"), bad.ask); !Retryable(err) {
				t.Errorf("got %v", err)
			}
			for range 5 { // nothing but headers came yet
				if _, err := r.ask(t.Context(), turnOf("sha256:good", "mirror.test", "origin.test"), good.ask); err != nil {
					t.Errorf("the mirror serves: %v", err)
				}
			}
		}
		if good.asked["mirror.test"] != 15 || good.asked["origin.test"] > 2 {
			t.Errorf("asked %v: want the mirror, and the registry while nothing is known of it", good.asked)
		}
		// The mirror alone fails: what the registry says of the blob counts, with no word from the mirror.
		r = New(Options{})
		lack := &answers{errs: map[string]error{"mirror.test": refused, "origin.test": &StatusError{Status: 404}}}
		for range 6 {
			if _, err := r.ask(t.Context(), turnOf("sha256:none", "mirror.test", "origin.test"), lack.ask); err == nil {
				t.Error("served by nobody")
			}
		}
		if lack.asked["mirror.test"] != 2 || lack.asked["origin.test"] != 6 {
			t.Errorf("asked %v", lack.asked)
		}
	})
}

// TestLack: a mirror that lacks a blob is not asked for it for a minute; for other blobs it is, and the registry is always asked.
func TestLack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{})
		missing := &StatusError{Host: "x", Status: 404}
		a := &answers{errs: map[string]error{"mirror.test": missing}}
		ask := func(blob string) error {
			_, err := r.ask(t.Context(), turnOf(blob, "mirror.test", "origin.test"), a.ask)
			return err
		}
		for range 100 {
			if err := ask("sha256:one"); err != nil {
				t.Fatal(err)
			}
		}
		if n := a.asked["mirror.test"]; n != 1 {
			t.Errorf("the mirror was asked %d times for what it lacks", n)
		}
		if err := ask("sha256:two"); err != nil || a.asked["mirror.test"] != 2 {
			t.Errorf("%v; for another blob it was not asked", err)
		}
		time.Sleep(lackHolds)
		if err := ask("sha256:one"); err != nil || a.asked["mirror.test"] != 3 {
			t.Errorf("%v; it was not asked again", err)
		}
		a.errs["origin.test"] = missing
		before := a.asked["origin.test"]
		for range 3 {
			if err := ask("sha256:one"); !errors.Is(err, ErrNotFound) {
				t.Errorf("got %v", err)
			}
		}
		if n := a.asked["origin.test"] - before; n != 3 {
			t.Errorf("the registry was asked %d times of 3", n)
		}
		if r.lacking.Len() > knownLacks {
			t.Error("too much is remembered")
		}
	})
}

// TestWaveringHost: a host that now serves and now does not is named in the log once a minute, not each second.
func TestWaveringHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := New(Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		h := r.healthOf("mirror.test", "")
		for range 10 * 60 {
			for range failuresHold {
				r.judge(t.Context(), "mirror.test", h, time.Now(), refused)
			}
			r.judge(t.Context(), "mirror.test", h, time.Now(), nil)
			time.Sleep(time.Second)
		}
		if n := strings.Count(log.String(), "left out"); n != 10 {
			t.Errorf("told %d times in ten minutes", n)
		}
	})
}
