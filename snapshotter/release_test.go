package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// released notes which images are removed.
type released struct {
	all []ImageName

	mu   sync.Mutex // guards gone
	gone []ImageName
}

func (r *released) Using(context.Context, digest.Digest) ([]ImageName, error) { return r.all, nil }

func (r *released) Release(_ context.Context, name ImageName) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = append(r.gone, name)
	return nil
}

func (r *released) names() []ImageName {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.gone)
}

// TestReleased: images whose layer is nowhere any more are removed by all their names once that has been so for a while, and not where
// it may end by itself, where something uses the layer, or where an image must stay.
func TestReleased(t *testing.T) {
	names := []ImageName{
		{Namespace: "default", Name: "app:1"}, {Namespace: "default", Name: "app@sha256:1"}, {Namespace: "other", Name: "twin"},
	}
	for name, c := range map[string]struct {
		status  int
		nothing bool // is behind the registry's address: all that it is asked for is not there
		all     []ImageName
		used    bool
		goneFor time.Duration
		want    bool
	}{
		"gone":       {status: http.StatusNotFound, all: names, want: true},
		"once":       {status: http.StatusNotFound, all: names, goneFor: time.Hour},
		"refused":    {status: http.StatusForbidden, all: names},
		"an outage":  {status: http.StatusServiceUnavailable, all: names},
		"used":       {status: http.StatusNotFound, all: names, used: true},
		"a balancer": {status: http.StatusNotFound, nothing: true, all: names},
		"one pinned": {status: http.StatusNotFound, all: append(slices.Clone(names), ImageName{Name: "infra", Stays: "it is pinned"})},
	} {
		t.Run(name, func(t *testing.T) {
			im := newImage(t, "app", nil, gzipLayer(t, file("a", noise(1, 300_000))))
			o := newOrigin(t, im)
			release := goneBlobs(o, "app", c.status)
			r := &released{all: c.all}
			b := newBed(t, o, func(b *bed) { b.opts.Releases, b.opts.GoneFor = r, max(c.goneFor, time.Nanosecond) })
			layer := b.pull(im)
			if c.used {
				if _, err := b.Prepare(b.ctx, "user", layer); err != nil {
					t.Fatal(err)
				}
			}
			release()
			if c.nothing {
				o.Answer("/v2/", http.StatusNotFound)
			}
			binding := b.bindings.get(b.id(layer))
			for range 3 {
				if err := b.mountings.ensure(b.ctx, binding); err == nil {
					t.Fatal("the layer is there")
				}
			}
			if c.used || c.nothing || len(c.all) > len(names) {
				eventually(t, "status to say why they stay", func() bool { return strings.Contains(b.statusOf(im.Layers[0]).Reason, "images stay") })
			}
			if !c.want {
				b.restart() // nothing is under way any more
				if got := r.names(); len(got) > 0 {
					t.Errorf("removed %v", got)
				}
				return
			}
			eventually(t, "all names are removed", func() bool { return slices.Equal(r.names(), c.all) })
			if err := errors.Join(b.Remove(b.ctx, layer), b.Cleanup(b.ctx)); err != nil {
				t.Fatal(err)
			}
			b.decline(im, 0, "")
		})
	}
}

// TestReleasedMounted: a layer that is mounted, and of which something turns out to be nowhere any more when a container reads it, is
// released once no container has it. If it comes back before, it is not.
func TestReleasedMounted(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprintf("back %v", back), func(t *testing.T) {
			im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(1, 300_000)), file("b", noise(2, 300_000))))
			r := &released{all: []ImageName{{Namespace: "default", Name: "app:1"}}}
			b := newBed(t, newOrigin(t, im), func(b *bed) { b.opts.Releases, b.opts.GoneFor = r, time.Nanosecond })
			layer := b.pull(im)
			mounts := b.run("container", layer)
			b.origin.Answer("/blobs/", http.StatusNotFound)
			if _, err := b.look(mounts, "b"); err == nil {
				t.Fatal("it is there")
			}
			eventually(t, "status to say that the container keeps it", func() bool {
				st := b.statusOf(im.Layers[0])
				return st.State == "mounted" && strings.Contains(st.Reason, "container")
			})
			if n := b.values("remora_snapshotter_broken_layers")["gone"]; n != 1 {
				t.Errorf("%v layers are gone", n)
			}
			if back {
				b.origin.SetFault(nil)
			}
			b.remove("container")
			if back {
				eventually(t, "the layer to be whole again", func() bool { return b.values("remora_snapshotter_broken_layers")["gone"] == 0 })
				b.restart()
				if got := r.names(); len(got) > 0 {
					t.Errorf("removed %v", got)
				}
				return
			}
			eventually(t, "the image to be removed", func() bool { return slices.Equal(r.names(), r.all) })
			if n := b.values("remora_snapshotter_released_images_total")[""]; n < 1 {
				t.Errorf("%v images were released", n)
			}
		})
	}
}
