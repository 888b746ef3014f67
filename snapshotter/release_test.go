package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/internal/durable"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// released notes which images are removed.
type released struct {
	all []Use

	mu   sync.Mutex // guards gone
	gone []ImageName
}

// uses are the images of some names, which are one.
func (b *bed) uses(im *image, names ...ImageName) (all []Use) {
	for _, name := range names {
		use := Use{ImageName: name, Target: im.Target}
		for _, l := range im.Layers {
			use.From = append(use.From, layers.Claim{Manifest: im.Target.Digest, Config: im.ConfigDesc, Source: layers.Source{
				Image: name.Name, Repo: b.repo(im), Descriptor: l.Desc, DiffID: l.DiffID, Namespace: name.Namespace,
			}})
		}
		all = append(all, use)
	}
	return all
}

// Using returns those that have a layer: of tests whose images have one each, the chainID is the diffID.
func (r *released) Using(_ context.Context, chainID digest.Digest) (all []Use, _ error) {
	for _, use := range r.all {
		if use.Unread != "" || use.From[0].DiffID == chainID {
			all = append(all, use)
		}
	}
	return all, nil
}

func (r *released) Release(_ context.Context, use *Use) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = append(r.gone, use.ImageName)
	return true, nil
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
	pinned := ImageName{Namespace: "default", Name: "infra", Stays: "it is pinned"}
	theLayer := func(_, kind, what string, im *image) bool {
		return kind == "blobs" && what == im.Layers[0].Digest().String()
	}
	theRepository := func(repo, _, _ string, _ *image) bool { return repo == "app" }
	for name, c := range map[string]struct {
		status  int                                           // of what is lost
		lost    func(repo, kind, what string, im *image) bool // theLayer if nil
		nothing bool                                          // is behind the registry's address: all that it is asked for is not there
		all     []ImageName
		used    bool
		unread  bool // there is an image whose index cannot be read, too
		goneFor time.Duration
		want    bool
	}{
		"one blob":       {status: http.StatusNotFound, all: names, want: true},
		"the repository": {status: http.StatusNotFound, lost: theRepository, all: names, want: true},
		"all blobs":      {status: http.StatusNotFound, lost: func(_, kind, _ string, _ *image) bool { return kind == "blobs" }, all: names},
		"once":           {status: http.StatusNotFound, all: names, goneFor: time.Hour},
		"refused":        {status: http.StatusForbidden, all: names},
		"an outage":      {status: http.StatusServiceUnavailable, all: names},
		"used":           {status: http.StatusNotFound, all: names, used: true},
		"a balancer":     {status: http.StatusNotFound, nothing: true, all: names},
		"one pinned":     {status: http.StatusNotFound, all: append(slices.Clone(names), pinned)},
		"one unread":     {status: http.StatusNotFound, unread: true, all: names, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			im := newImage(t, "app", nil, gzipLayer(t, file("a", noise(1, 300_000))))
			o := newOrigin(t, im)
			if c.lost == nil {
				c.lost = theLayer
			}
			release := lose(o, c.status, func(repo, kind, what string) bool { return c.lost(repo, kind, what, im) })
			r := &released{}
			b := newBed(t, o, func(b *bed) {
				r.all = b.uses(im, c.all...)
				if c.unread {
					r.all = append(r.all, Use{ImageName: ImageName{Namespace: "default", Name: "large"}, Unread: "its index is too large"})
				}
				b.opts.Releases, b.opts.GoneFor = r, max(c.goneFor, time.Nanosecond)
			})
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
			b.fails(im)
			if c.status == http.StatusNotFound && !c.want && c.goneFor == 0 {
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

// fails has an image's only layer fail to be mounted.
func (b *bed) fails(im *image) {
	b.t.Helper()
	binding := b.bindings.get(b.id(b.named(im.ChainIDs[0], "")))
	for range 3 {
		if err := b.mountings.ensure(b.ctx, binding); err == nil {
			b.t.Fatal("the layer is there")
		}
	}
}

// TestStorageLost: a registry that lacks all that it had is one whose storage may come back, and no image is released. Where another of
// its repositories is there, those that are not were deleted; if they are many, somebody is asked.
func TestStorageLost(t *testing.T) {
	for name, neighbour := range map[string]bool{"everything is lost": false, "one repository is there": true} {
		t.Run(name, func(t *testing.T) {
			var all []*image
			for i := range releasesMost + 2 {
				all = append(all, newImage(t, fmt.Sprint("app", i), nil, gzipLayer(t, file("a", noise(uint64(i), 100_000)))))
			}
			o := newOrigin(t, all...)
			release := lose(o, http.StatusNotFound, func(repo, kind, _ string) bool { return kind != "" && (repo != "app0" || !neighbour) })
			r := &released{}
			b := newBed(t, o, func(b *bed) {
				for _, im := range all {
					r.all = append(r.all, b.uses(im, ImageName{Namespace: "default", Name: im.Path})...)
				}
				b.opts.Releases, b.opts.GoneFor = r, time.Nanosecond
			})
			for _, im := range all {
				b.pull(im)
			}
			release()
			lost, most := all, 0
			if neighbour {
				lost, most = all[1:], releasesMost
			}
			for _, im := range lost {
				b.fails(im)
			}
			eventually(t, "status to say of all but those that are removed why they stay", func() bool {
				n := 0
				for _, im := range lost {
					why := b.statusOf(im.Layers[0]).Reason
					if strings.Contains(why, "snapctl repair --release") && neighbour || strings.Contains(why, "storage") && !neighbour {
						n++
					}
				}
				return n == len(lost)-most
			})
			if got := r.names(); len(got) != most {
				t.Fatalf("removed %v", got)
			}
			for _, im := range lost {
				name := ImageName{Namespace: "default", Name: im.Path}
				if slices.Contains(r.names(), name) {
					continue
				}
				if _, removed, err := b.repaired(im, true); err != nil || !slices.Equal(removed, []ImageName{name}) {
					t.Errorf("an operator has removed %v, %v", removed, err)
				}
				return
			}
		})
	}
}

// TestReleasesBoundedOverRestarts: remorad removes images of no more repositories of a host within an hour for being restarted after each.
func TestReleasesBoundedOverRestarts(t *testing.T) {
	var all []*image
	for i := range releasesMost + 3 {
		all = append(all, newImage(t, fmt.Sprint("app", i), nil, gzipLayer(t, file("a", noise(uint64(i), 100_000)))))
	}
	o := newOrigin(t, all...)
	release := lose(o, http.StatusNotFound, func(repo, kind, _ string) bool { return kind != "" && repo != "app0" })
	r := &released{}
	b := newBed(t, o, func(b *bed) {
		for _, im := range all {
			r.all = append(r.all, b.uses(im, ImageName{Namespace: "default", Name: im.Path})...)
		}
		b.opts.Releases, b.opts.GoneFor = r, time.Nanosecond
	})
	for _, im := range all {
		b.pull(im)
	}
	release()
	removed := func() map[string]bool { // those of before are named again after a restart, as their snapshots are not removed here
		names := map[string]bool{}
		for _, name := range r.names() {
			names[name.Name] = true
		}
		return names
	}
	for _, im := range all[1:] {
		b.fails(im)
		eventually(t, "what becomes of it to be known", func() bool {
			return removed()[im.Path] || strings.Contains(b.statusOf(im.Layers[0]).Reason, "snapctl repair --release")
		})
		b.restart()
	}
	if n := len(removed()); n != releasesMost {
		t.Errorf("removed images of %d repositories: %v", n, removed())
	}
	b.close()
	if err := os.WriteFile(filepath.Join(b.root, spellsKind.Name), []byte(`{"version": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.open()
	if err := b.releasing.mayRelease(&r.all[0].From[0]); !errors.Is(err, durable.ErrNewer) {
		t.Errorf("where nobody knows how many were: %v", err)
	}
}

// TestReleaseRefusedCountsNothing: an image that was had from so many repositories that it must not be removed counts for none of them, now
// and over restarts, and those of one image count together.
func TestReleaseRefusedCountsNothing(t *testing.T) {
	r := &releasing{base: &base{root: t.TempDir(), log: logOf(t)}}
	use := func(paths ...string) *Use {
		use := &Use{}
		for _, path := range paths {
			use.From = append(use.From, layers.Claim{Source: layers.Source{Repo: registry.Repository{Host: "reg.test", Path: path}}})
		}
		return use
	}
	for i := range releasesMost - 1 {
		if err := r.noteRelease(use(fmt.Sprint("app", i)), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.noteRelease(use("app0", "two", "many"), false); err == nil {
		t.Error("images of too many repositories may be removed")
	}
	next := &releasing{base: r.base}
	next.load()
	for _, r := range []*releasing{r, next} {
		if n := len(r.spells); n != releasesMost-1 {
			t.Errorf("%d repositories count: %v", n, r.spells)
		}
	}
	if err := next.noteRelease(use("app0", "last"), false); err != nil {
		t.Errorf("the last that may be removed: %v", err)
	}
}

// TestLostByBlob: images of one repository that have a layer by other blobs are asked for each: one that is there does not make up for
// one that is lost, nor the other way round.
func TestLostByBlob(t *testing.T) {
	was, is := gzipLayer(t, file("a", honest)), zstdLayer(t, file("a", honest))
	old, anew := newImage(t, "app", nil, was), newImage(t, "app", nil, is)
	o := newOrigin(t, old, anew)
	release := lose(o, http.StatusNotFound, func(_, _, what string) bool { return what == was.Digest().String() })
	b := newBed(t, o, func(b *bed) { b.opts.Releases = &released{} })
	name := b.pull(old)
	release()
	lost := b.uses(old, ImageName{Namespace: "default", Name: "app:1"})
	there := b.uses(anew, ImageName{Namespace: "default", Name: "app:2"})
	for _, all := range [][]Use{append(slices.Clone(lost), there...), append(slices.Clone(there), lost...)} {
		got, err := b.releasing.lostOf(b.ctx, b.bindings.get(b.id(name)), nil, all, false)
		if err != nil || len(got) != 1 || got[0].ImageName != lost[0].ImageName {
			t.Errorf("of %v: %v, %v", all, got, err)
		}
	}
}

// TestNeighbourRefuses: a repository that lets nobody in says nothing of its host, and does not keep another one from saying it.
func TestNeighbourRefuses(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", noise(1, 300_000))))
	closed := newImage(t, "closed", nil, gzipLayer(t, file("a", noise(2, 3000))))
	open := newImage(t, "open", nil, gzipLayer(t, file("a", noise(3, 3000))))
	o := newOrigin(t, im, closed, open)
	var away, shut atomic.Bool
	o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		switch repo, _, _ := split(r.URL.Path); {
		case repo == "app" && away.Load():
			w.WriteHeader(http.StatusNotFound)
		case repo == "closed" && away.Load(), repo == "open" && shut.Load():
			w.WriteHeader(http.StatusForbidden)
		default:
			return false
		}
		return true
	})
	b := newBed(t, o, func(b *bed) { b.opts.Releases = &released{} })
	b.pull(closed)
	b.pull(open)
	name := b.pull(im)
	away.Store(true)
	uses := b.uses(im, ImageName{Namespace: "default", Name: "app:1"})
	lost := func() ([]Use, error) { return b.releasing.lostOf(b.ctx, b.bindings.get(b.id(name)), nil, uses, false) }
	if got, err := lost(); err != nil || len(got) != 1 {
		t.Errorf("beside one that serves: %v, %v", got, err)
	}
	shut.Store(true)
	if got, err := lost(); err == nil {
		t.Errorf("beside none that serves: %v", got)
	}
}

// TestReleasedApart: each namespace has a snapshot of its own of a layer, and the images of one are not removed for the other's, which
// nothing uses. They are once nothing uses their own.
func TestReleasedApart(t *testing.T) {
	im := newImage(t, "app", nil, gzipLayer(t, file("a", noise(1, 300_000))))
	o := newOrigin(t, im)
	release := lose(o, http.StatusNotFound, func(_, _, what string) bool { return what == im.Layers[0].Digest().String() })
	idle, busy := ImageName{Namespace: "default", Name: "app:1"}, ImageName{Namespace: "k8s.io", Name: "app:1"}
	r := &released{}
	b := newBed(t, o, func(b *bed) {
		r.all = b.uses(im, idle, busy)
		b.opts.Releases, b.opts.GoneFor = r, time.Nanosecond
	})
	b.pull(im)
	used := *b
	used.ctx = namespaces.WithNamespace(t.Context(), busy.Namespace)
	if _, err := b.Prepare(used.ctx, "user", used.pull(im)); err != nil {
		t.Fatal(err)
	}
	release()
	b.fails(im)
	used.fails(im)
	eventually(t, "the image is removed that nothing uses", func() bool { return len(r.names()) > 0 })
	eventually(t, "what uses the other one to be told", func() bool {
		return slices.ContainsFunc(b.Status().Layers, func(st LayerStatus) bool {
			return strings.Contains(st.Reason, "snapshots are made of it")
		})
	})
	if got := r.names(); slices.Contains(got, busy) {
		t.Errorf("removed %v", got)
	}
	if err := b.Remove(used.ctx, "user"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other image is removed, too", func() bool { return slices.Contains(r.names(), busy) })
}

// TestReleasedMounted: a layer that is mounted, and of which something turns out to be nowhere any more when a container reads it, is
// released once no container has it. If it comes back before, it is not.
func TestReleasedMounted(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprintf("back %v", back), func(t *testing.T) {
			im := newImage(t, "app", nil, estargzLayer(t, file("a", noise(1, 300_000)), file("b", noise(2, 300_000))))
			r, name := &released{}, ImageName{Namespace: "default", Name: "app:1"}
			b := newBed(t, newOrigin(t, im), func(b *bed) {
				r.all = b.uses(im, name)
				b.opts.Releases, b.opts.GoneFor = r, time.Nanosecond
			})
			layer := b.pull(im)
			mounts := b.run("container", layer)
			b.origin.Answer("/blobs/"+im.Layers[0].Digest().String(), http.StatusNotFound)
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
			eventually(t, "the image to be removed", func() bool { return slices.Equal(r.names(), []ImageName{name}) })
			if n := b.values("remora_snapshotter_released_images_total")[""]; n < 1 {
				t.Errorf("%v images were released", n)
			}
		})
	}
}

// TestReleasedBeyond: an image whose layer was claimed, and turned out to be beyond what [limits] allow, unpacked, too, is removed by all
// its names, from whichever repository it came, so that the next pull leaves the layer to containerd: also after a restart, and where
// something else had kept an image from being made of it. While something uses the layer, its images stay.
func TestReleasedBeyond(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files to root")
	}
	many := func(n int, more ...member) (all []member) {
		for i := range n {
			all = append(all, file(fmt.Sprint(i), noise(uint64(i), 3000)))
		}
		return append(all, more...)
	}
	for name, c := range map[string]struct {
		l      layer
		limits layout.Limits
		used   bool
	}{
		"files":                 {l: gzipLayer(t, many(100)...), limits: layout.Limits{Nodes: 40}},
		"files, and a device":   {l: gzipLayer(t, append([]member{device("odd")}, many(100)...)...), limits: layout.Limits{Nodes: 40}},
		"files behind a table":  {l: estargzLayer(t, many(100)...), limits: layout.Limits{Nodes: 40}},
		"a bomb":                {l: gzipLayer(t, many(100)...), limits: layout.Limits{Plain: 100_000}},
		"files of one in use":   {l: gzipLayer(t, many(100)...), limits: layout.Limits{Nodes: 40}, used: true},
		"files that fit beside": {l: gzipLayer(t, many(60)...), limits: layout.Limits{Nodes: 40}, used: true},
	} {
		t.Run(name, func(t *testing.T) {
			im, twin := newImage(t, "app", nil, c.l), newImage(t, "twin", []string{"twin"}, c.l)
			r := &released{}
			b := newBed(t, newOrigin(t, im, twin), func(b *bed) {
				r.all = append(b.uses(im, ImageName{Namespace: "default", Name: "app:1"}, ImageName{Namespace: "default", Name: "app@1"}),
					b.uses(twin, ImageName{Namespace: "default", Name: "twin:1"})...)
				b.opts.Releases, b.opts.GoneFor, b.opts.Layers.Limits = r, time.Nanosecond, c.limits
			})
			b.fetch(twin)
			layer := refusedLate(b, im)
			if c.used {
				if _, err := b.Prepare(b.ctx, "user", layer); err != nil {
					t.Fatal(err)
				}
			}
			if name == "files that fit beside" {
				if _, err := b.Mounts(b.ctx, "user"); err != nil {
					t.Error(err)
				}
				b.restart()
			} else {
				b.fails(im)
			}
			if c.used {
				if name == "files of one in use" {
					eventually(t, "status to say that the container keeps it", func() bool {
						return strings.Contains(b.statusOf(c.l).Reason, "containers (user)") && strings.Contains(b.statusOf(c.l).Reason, "[limits]")
					})
				}
				if got := r.names(); len(got) > 0 {
					t.Errorf("removed %v", got)
				}
				return
			}
			eventually(t, "all names are removed", func() bool { return len(r.names()) >= len(r.all) })
			if err := errors.Join(b.Remove(b.ctx, layer), b.Cleanup(b.ctx)); err != nil {
				t.Fatal(err)
			}
			b.restart()
			b.decline(im, 0, "")
			b.decline(twin, 0, "")
		})
	}
}
