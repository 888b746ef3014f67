package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// told are the events that a bed's Snapshotters tell of.
type told struct {
	mu  sync.Mutex // guards all
	all []string
}

func (e *told) tell(_ context.Context, event Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, fmt.Sprintf("%s %s/%s %s", event.What, event.Namespace, event.Image, event.Layer))
	return nil
}

// must waits for events, and insists that there are no others.
func (e *told) must(t *testing.T, want ...string) {
	t.Helper()
	last := func() []string {
		e.mu.Lock()
		defer e.mu.Unlock()
		return slices.Clone(e.all)
	}
	eventually(t, fmt.Sprintf("events %q", want), func() bool { return len(last()) >= len(want) })
	if got := last(); !slices.Equal(got, want) {
		t.Errorf("got events %q, want %q", got, want)
	}
}

// TestEvents: it is told once each that a layer is nowhere any more, that it is back, from another place too and whatever outages come
// between, and which images are removed.
func TestEvents(t *testing.T) {
	event := func(what EventKind, image string, d digest.Digest) string {
		return fmt.Sprintf("%s default/%s %s", what, image, d)
	}
	l := gzipLayer(t, file("a", noise(1, 300_000)))
	d := l.Digest()
	for name, c := range map[string]struct {
		after func(b *bed, im, twin *image)
		want  func(b *bed, im *image) []string
	}{
		"back": {
			func(b *bed, _, _ *image) { b.origin.SetFault(nil) },
			func(b *bed, im *image) []string { return []string{event(EventMended, b.ref(im), d)} },
		},
		"back after outages": {
			func(b *bed, im, _ *image) {
				binding := b.bindings.get(b.id(b.named(im.ChainIDs[0], "")))
				for _, status := range []int{http.StatusServiceUnavailable, http.StatusNotFound, http.StatusServiceUnavailable} {
					b.origin.Answer(d.String(), status)
					eventually(b.t, fmt.Sprint("it fails by ", status), func() bool {
						err := b.mountings.ensure(b.ctx, binding)
						return err != nil && errors.As(err, new(*goneError)) == (status == http.StatusNotFound)
					})
				}
				b.origin.SetFault(nil)
			},
			func(b *bed, im *image) []string { return []string{event(EventMended, b.ref(im), d)} },
		},
		"elsewhere": {
			func(b *bed, _, twin *image) { b.fetch(twin) },
			func(b *bed, im *image) []string { return []string{event(EventMended, b.ref(im), d)} },
		},
		"released": {
			func(*bed, *image, *image) {},
			func(b *bed, im *image) []string {
				return []string{event(EventReleased, "app:1", d), event(EventReleased, "other", d)}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			im, twin := newImage(t, "app", []string{"app"}, l), newImage(t, "twin", []string{"twin"}, l)
			e, r := &told{}, &released{}
			o := newOrigin(t, im, twin)
			release := lose(o, http.StatusNotFound, func(repo, _, what string) bool { return repo == "app" && what == d.String() })
			b := newBed(t, o, func(b *bed) {
				b.opts.Tell, b.opts.Releases, b.opts.GoneFor = e.tell, r, time.Hour
				if name == "released" {
					b.opts.GoneFor = 100 * time.Millisecond
					r.all = b.uses(im, ImageName{Namespace: "default", Name: "app:1"}, ImageName{Namespace: "default", Name: "other"})
				}
			})
			b.fetch(im)
			layer := b.claim(im, 0, "")
			release()
			binding := b.bindings.get(b.id(layer))
			if err := b.mountings.ensure(b.ctx, binding); err == nil {
				t.Fatal("the layer is there")
			}
			if c.after(b, im, twin); name != "released" {
				e.must(t, event(EventBroken, b.ref(im), d))
				eventually(t, "the layer is mounted", func() bool { return b.mountings.ensure(b.ctx, binding) == nil })
			}
			e.must(t, append([]string{event(EventBroken, b.ref(im), d)}, c.want(b, im)...)...)
		})
	}
}
