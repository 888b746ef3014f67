package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	controlv1 "github.com/remora-storage/remora/cmd/control/v1"
	"github.com/remora-storage/remora/cmd/internal/cmdtest"
	"github.com/remora-storage/remora/cmd/internal/control"
)

// A node is a machine with containerd and remorad, and a registry with an image that some layers are lazy of.
type node struct {
	*user
	remorad    *fakeRemorad
	containerd *cmdtest.Containerd
	registry   *cmdtest.Registry
	image      *cmdtest.Image
	ref        string
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{user: newUser(t), registry: cmdtest.NewRegistry(t), image: program(t, cmdtest.OCI)}
	n.remorad, n.containerd = newRemorad(n.user), cmdtest.NewContainerd(t, n.user.containerd)
	n.registry.Put("app", "1", n.image)
	n.ref = n.registry.Ref("app:1")
	return n
}

// lazy makes the first of the image's layers lazy, in containerd's eyes and in remorad's.
func (n *node) lazy(layers int) {
	var all []string
	n.remorad.set(func() {
		for _, l := range n.image.Manifest(n.t).Layers[:layers] {
			all = append(all, l.Digest.String())
			n.remorad.status.Layers = append(n.remorad.status.Layers, &controlv1.Layer{Digest: l.Digest.String(), Format: "estargz"})
		}
		n.remorad.resolve = []*controlv1.ResolveResponse{{Done: true}}
	})
	n.containerd.Snapshots.Lazy(func(layer string) bool { return slices.Contains(all, layer) })
}

// TestPullLazily takes nothing of the layers from the registry, and lets containerd have manifest and configuration from
// remorad, which has read them already.
func TestPullLazily(t *testing.T) {
	n := newNode(t)
	n.lazy(2)
	m := n.image.Manifest(t)
	n.remorad.set(func() {
		for _, d := range []struct{ mediaType, digest string }{{m.MediaType, n.image.Target.Digest.String()},
			{m.Config.MediaType, m.Config.Digest.String()}} {
			for key, doc := range n.image.Docs {
				if key.String() == d.digest {
					n.remorad.prime = append(n.remorad.prime, &controlv1.Document{MediaType: d.mediaType, Digest: d.digest, Data: doc.Data})
				}
			}
		}
	})
	got := decode[pulledImage](n.run("--json", "pull", n.ref))
	if got.Image != n.ref || got.Digest != n.image.Target.Digest || got.Snapshotter != "remora" || len(got.Layers) != 2 ||
		!got.Layers[0].Lazy || got.Layers[1].How != howLazy {
		t.Errorf("pulled: %+v", got)
	}
	if asked := n.registry.Requests(""); len(asked) > 0 {
		t.Errorf("the registry was asked for %v", asked)
	}
	if r := last[*controlv1.ResolveRequest](t, n.remorad); r.Manifest != n.image.Target.Digest.String() || r.Ref != n.ref ||
		r.Namespace != "default" {
		t.Errorf("resolved %v", r)
	}
	if target := n.containerd.Target(t, n.ref); target.Digest != n.image.Target.Digest {
		t.Errorf("containerd has %s", target.Digest)
	}
	contains(t, n.run("pull", n.ref).ok(), n.ref+"@"+n.image.Target.Digest.String()+" is ready after", "lazy")
}

// TestPullAsksStatusOnce: a node's status is dearer the more layers it has. It is asked for once, for what became of the image's, and again
// only where remorad does not say by itself how registries are reached.
func TestPullAsksStatusOnce(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(f *fakeRemorad)
		want  int
	}{
		"":                       {func(*fakeRemorad) {}, 1},
		"an older remorad":       {func(f *fakeRemorad) { f.older = true }, 2},
		"it could not be primed": {func(f *fakeRemorad) { f.refuse["PrimeRequest"] = refusal("no such image") }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.lazy(2)
			n.remorad.set(func() { c.spoil(n.remorad) })
			n.run("pull", n.ref).ok()
			if got := len(requests[*controlv1.StatusRequest](n.remorad)); got != c.want {
				t.Errorf("asked %d times, want %d", got, c.want)
			}
		})
	}
}

// TestPullOrdinary has containerd download what cannot be lazy, and says why; an imported layer is neither.
func TestPullOrdinary(t *testing.T) {
	n := newNode(t)
	n.lazy(1)
	l := n.image.Manifest(t).Layers[1].Digest.String()
	n.remorad.set(func() {
		n.remorad.status.Layers[0].Format = "import"
		n.remorad.resolve = []*controlv1.ResolveResponse{
			{Importing: []*controlv1.LayerProgress{{Digest: l, Bytes: 1, Total: 2}}},
			{Done: true, Ordinary: map[string]string{l: "it has no index"}},
		}
	})
	contains(t, n.run("pull", n.ref).ok(), "imported", howUnpacked+": it has no index")
	if got := n.registry.Requests("GET /v2/app/blobs/" + l); len(got) != 1 {
		t.Errorf("the layer was asked for by %v", got)
	}
}

// TestPullLogin passes credentials on to remorad, and uses them itself.
func TestPullLogin(t *testing.T) {
	n := newNode(t)
	n.lazy(2)
	n.registry.Require("robot:secret")
	n.run("pull", n.ref).fails(1, "pull "+n.ref)
	n.run("pull", "--user", "robot", n.ref).fails(2, "SNAPCTL_PASSWORD")
	n.types = "secret"
	n.run("pull", "--user", "robot", "--password-stdin", "--plain-http", n.ref).ok()
	if r := last[*controlv1.LoginRequest](t, n.remorad); r.Host != n.registry.Host() || r.User != "robot" || r.Secret != "secret" ||
		!r.PlainHttp {
		t.Errorf("logged in by %v", r)
	}
	n.remorad.set(func() { n.remorad.refuse["LoginRequest"] = refusal("the disk is full") })
	n.run("pull", "--user", "robot", "--password-stdin", n.ref).fails(1, "the disk is full")
}

// TestPullFails says what to do.
func TestPullFails(t *testing.T) {
	n := newNode(t)
	n.lazy(2)
	n.run("pull", n.registry.Ref("none:1")).fails(1, "pull "+n.registry.Ref("none:1"), "not found")
	n.run("pull", "--snapshotter", "other", n.ref).fails(1, `does not know the snapshotter "other"`, "remorad containerd-config")
	n.run("pull", "No Image").fails(2, "No Image")
	n.containerd.Snapshots.Fail(errors.New("the disk is full"))
	n.run("pull", n.ref).fails(1, "pull "+n.ref, "the disk is full")
	n.containerd.Snapshots.Fail(nil)
	n.remorad.set(func() { n.remorad.refuse["StatusRequest"] = refusal("too busy") })
	n.run("pull", n.ref).fails(1, "too busy")
}

// TestUntilReached tries again while containerd has not reached remorad, for as long as that may take, and no other failure.
func TestUntilReached(t *testing.T) {
	away := fmt.Errorf("remorad: %w", errdefs.ErrUnavailable)
	for name, c := range map[string]struct {
		errs  []error // of the tries
		want  error
		after time.Duration
	}{
		"at once":       {[]error{nil}, nil, 0},
		"the third try": {[]error{away, away, nil}, nil, 2 * time.Second},
		"never":         {[]error{away, away, away, away, away, away}, errdefs.ErrUnavailable, reconnectTries * time.Second},
		"another error": {[]error{away, errdefs.ErrNotFound}, errdefs.ErrNotFound, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var stderr cmdtest.Output
				a := &app{stderr: &stderr}
				begin, tries := time.Now(), 0
				err := a.untilReached(t.Context(), func() error {
					tries++
					return c.errs[tries-1]
				})
				if !errors.Is(err, c.want) || tries != len(c.errs) || time.Since(begin) != c.after {
					t.Errorf("%v after %d tries and %v", err, tries, time.Since(begin))
				}
				if c.after > 0 {
					contains(t, stderr.String(), "waiting")
				}
			})
		})
	}
	stopped, stop := context.WithCancelCause(t.Context())
	why := errors.New("Ctrl-C")
	stop(why)
	if err := (&app{stderr: new(cmdtest.Output)}).untilReached(stopped, func() error { return away }); !errors.Is(err, why) {
		t.Errorf("stopped: %v", err)
	}
}

// TestImportProgress is told of once a second, however often it changes.
func TestImportProgress(t *testing.T) {
	synctest.Test(t, func(*testing.T) {
		var stderr cmdtest.Output
		tell := (&app{stderr: &stderr}).importProgress()
		for i := range 30 {
			time.Sleep(100 * time.Millisecond)
			tell([]control.FetchProgress{{Bytes: int64(i) << 20, Total: 30 << 20}, {}})
		}
		if got, want := stderr.String(), "importing  9MiB of 30MiB\nimporting  19MiB of 30MiB\nimporting  29MiB of 30MiB\n"; got != want {
			t.Errorf("said %q, want %q", got, want)
		}
	})
}

// TestFetch makes an image complete, in the cache or in containerd's store too.
func TestFetch(t *testing.T) {
	n := newNode(t)
	n.run("fetch", n.ref).fails(1, "snapctl pull")
	n.containerd.Put(t, n.ref, n.image)
	n.remorad.set(func() {
		for _, l := range n.image.Manifest(t).Layers {
			for _, done := range []bool{false, true} {
				n.remorad.fetch = append(n.remorad.fetch, &controlv1.FetchResponse{Layer: &controlv1.LayerProgress{Digest: l.Digest.String(),
					Bytes: l.Size, Total: l.Size, Done: done}})
			}
		}
	})
	contains(t, n.run("fetch", n.ref).ok(), n.ref+": 2 layers", "in containerd's content store and in the cache")
	contains(t, n.run("fetch", "--cache-only", n.ref).ok(), "complete and checked, in the cache")
	if r := last[*controlv1.FetchRequest](t, n.remorad); !r.CacheOnly || r.Manifest != n.image.Target.Digest.String() {
		t.Errorf("asked for %v", r)
	}
	got := decode[fetchedImage](n.run("--json", "fetch", n.ref))
	if m := n.image.Manifest(t); len(got.Layers) != 2 || got.Bytes != m.Layers[0].Size+m.Layers[1].Size || !got.Blobs {
		t.Errorf("as JSON: %+v", got)
	}
	n.remorad.set(func() { n.remorad.refuse["FetchRequest"] = refusal("layer sha256:0: it is wrong") })
	n.run("fetch", n.ref).fails(1, "fetch "+n.ref+": layer sha256:0: it is wrong")
}
