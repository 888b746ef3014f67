package layers

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
)

// TestFailures: what failed is known of the repository or of the host, and only what is not the layer's own fault.
func TestFailures(t *testing.T) {
	here, there := registry.Repository{Host: "reg.test", Path: "a"}, registry.Repository{Host: "reg.test", Path: "b"}
	withheld := &registry.StatusError{Host: "storage.test", Status: 403, Redirected: true}
	refused, down := &registry.StatusError{Host: "reg.test", Status: 403}, &registry.StatusError{Host: "reg.test", Status: 503}
	for name, c := range map[string]struct {
		do          func(*failures)
		here, there bool
	}{
		"no access":          {func(f *failures) { f.note(here, refused) }, true, false},
		"one blob withheld":  {func(f *failures) { f.note(here, withheld) }, false, false},
		"an outage":          {func(f *failures) { f.note(here, down) }, true, true},
		"a bad layer":        {func(f *failures) { f.note(here, NotLazy("bad")) }, false, false},
		"no such layer":      {func(f *failures) { f.note(here, registry.ErrNotFound) }, false, false},
		"silence":            {func(f *failures) { f.slow(here, ErrUnproven) }, true, true},
		"silence of one":     {func(f *failures) { f.note(there, nil); f.slow(here, ErrUnproven) }, true, false},
		"served again":       {func(f *failures) { f.note(here, down); f.note(there, nil) }, false, false},
		"others' access":     {func(f *failures) { f.note(here, refused); f.note(there, nil) }, true, false},
		"credentials change": {func(f *failures) { f.note(here, refused); f.note(here, down); f.forgive() }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			var f failures
			c.do(&f)
			if h, th := f.of(here) != nil, f.of(there) != nil; h != c.here || th != c.there {
				t.Errorf("known of the repository: %v, of its neighbour: %v; want %v, %v", h, th, c.here, c.there)
			}
		})
	}
}

// TestRests: a host that says how long it is to be left alone is taken at its word, within bounds.
func TestRests(t *testing.T) {
	repo := registry.Repository{Host: "reg.test", Path: "a"}
	for after, want := range map[time.Duration]time.Duration{0: failureHolds, 10 * time.Minute: 10 * time.Minute, 48 * time.Hour: restHolds} {
		synctest.Test(t, func(t *testing.T) {
			var f failures
			f.note(repo, fmt.Errorf("read: %w", &registry.StatusError{Host: "reg.test", Status: 429, RetryAfter: after}))
			time.Sleep(want - time.Second)
			if f.of(repo) == nil {
				t.Errorf("after %s: forgotten too early", after)
			}
			time.Sleep(time.Second)
			if err := f.of(repo); err != nil {
				t.Errorf("after %s: %v", after, err)
			}
		})
	}
}

// way is a registry of which only the way there is known.
type way struct{ latency time.Duration }

func (w way) Blob(registry.Repository, ocispec.Descriptor) Blob { return linked{latency: w.latency} }

func (w way) Present(context.Context, string) error { return nil }

func (w way) ServesRanges(context.Context, string) bool { return false }

func (w way) LacksRanges(context.Context, string) bool { return false }

func (w way) Forgive() {}

func (w way) Manifest(context.Context, registry.Repository, string) (ocispec.Descriptor, []byte, error) {
	return ocispec.Descriptor{}, nil, registry.ErrNotFound
}

type linked struct {
	Blob
	latency time.Duration
}

func (l linked) Link() (time.Duration, int64) { return l.latency, 0 }

// TestPatience: a proof gets as many round trips as it may take, within bounds.
func TestPatience(t *testing.T) {
	for latency, want := range map[time.Duration]time.Duration{
		0: proofMost, time.Millisecond: proofLeast, 80 * time.Millisecond: 800 * time.Millisecond, time.Second: proofMost,
	} {
		l := &Proofs{places: &Places{registry: way{latency: latency}}}
		if got := l.patience(&Source{Repo: registry.Repository{Host: "reg.test", Path: "app"}}); got != want {
			t.Errorf("at %s: %s, want %s", latency, got, want)
		}
	}
}
