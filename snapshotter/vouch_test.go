package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/layers"
)

// A forgery is an image of somebody who names another image's layer beside a table of his own, in a repository that serves
// what he likes under any digest.
type forgery struct {
	*image
	layer layer
	// cut has the data of his layer answered by 503.
	cut bool
	// asked counts requests for the victim's layer in the victim's own repository.
	asked atomic.Int32
}

var (
	honest = noise(7, 100_000)
	forged = noise(8, 100_000)
)

// forge makes an image in the repository "evil" that names the layer of an image in "app". With lie it claims that layer's
// diffID, too.
func forge(t *testing.T, o *origin, victim *image, lie, cut bool) *forgery {
	t.Helper()
	l := estargzLayer(t, file("a", forged), file("b", noise(9, 300_000)))
	f := &forgery{layer: l, cut: cut}
	l.Desc.Digest = victim.Layers[0].Digest()
	if lie {
		var config ocispec.Image
		for _, l := range victim.Layers {
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		}
		f.image = imageOf(t, "evil", config, l)
	} else {
		f.image = newImage(t, "evil", nil, l)
	}
	o.Add(f.image)
	o.Add(victim) // under the digest there is the right blob, but in the one repository
	o.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		repo, kind, what := split(r.URL.Path)
		if kind != "blobs" || digest.Digest(what) != l.Desc.Digest {
			return false
		}
		if repo != "evil" {
			f.asked.Add(1)
			return false
		}
		var from int
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from) // none is from the start
		if f.cut && from > 0 && from < len(l.Blob)/2 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.Blob))
		return true
	})
	return f
}

// notBlamed fails the test if a snapshot of the victim's is quarantined.
func (b *bed) notBlamed(victim *image) {
	b.t.Helper()
	for _, l := range b.Status().Layers {
		if l.Image == b.ref(victim) && l.State != "mounted" {
			b.t.Errorf("the victim's layer is %s: %s", l.State, l.Reason)
		}
	}
}

// TestForgedTable: a manifest that names somebody's layer beside a table of its own decides nothing of what other images
// show, in whichever order, over a restart, and after its removal.
func TestForgedTable(t *testing.T) {
	for _, f := range formats {
		for _, order := range []string{"before", "after", "before, restart", "before, removed"} {
			t.Run(f.name+"/"+order, func(t *testing.T) {
				victim := newImage(t, "app", nil, f.make(t, file("a", honest)))
				o := newOrigin(t)
				evil := forge(t, o, victim, false, order == "before")
				b := newBed(t, o, nil)
				seen := func() {
					t.Helper()
					b.sees(b.run("app-"+uniqueSuffix(), b.pull(victim)), "a", honest)
				}
				if order == "after" {
					seen()
				}
				name := b.pull(evil.image)
				switch order {
				case "after": // where the layer was read whole, it is not what his configuration promises
					if _, err := b.Prepare(b.ctx, "evil", name); err != nil {
						t.Fatal(err)
					}
					_, _ = b.Mounts(b.ctx, "evil")
				case "before":
					b.run("evil", name)
				default:
					b.sees(b.run("evil", name), "a", forged) // his own bytes are his own affair
				}
				switch order {
				case "before, restart":
					b.restart()
				case "before, removed":
					b.remove("evil", name)
				}
				seen()
				if evil.asked.Load() == 0 {
					t.Error("the victim's own repository was not asked")
				}
				b.notBlamed(victim)
			})
		}
	}
}

// TestContestedChainID: where images of a namespace claim one chainID by different tables, containers see the bytes that
// have the diffID, though containerd never asks about the second image.
func TestContestedChainID(t *testing.T) {
	for _, f := range formats {
		for _, cut := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/cut=%v", f.name, cut), func(t *testing.T) {
				victim := newImage(t, "app", nil, f.make(t, file("a", honest)))
				o := newOrigin(t)
				evil := forge(t, o, victim, true, cut)
				b := newBed(t, o, nil)
				name := b.pull(evil.image)
				if mounts := b.run("evil", name); !cut {
					b.sees(mounts, "a", forged) // nobody else has claimed it yet
				}
				if cut {
					b.fetch(victim)
				} else {
					b.complete(evil.layer, name) // and found to be a lie
					eventually(t, "the lie to be found", func() bool { return b.Status().Layers[0].State == "quarantined" })
					if _, err := b.Mounts(b.ctx, "evil"); err == nil {
						t.Error("a quarantined layer is mounted")
					}
					b.fetch(victim)
				}
				mounts := b.run("victim", name)
				b.sees(mounts, "a", honest)
				if evil.asked.Load() == 0 {
					t.Error("the victim's own repository was not asked")
				}
				for _, l := range b.Status().Layers {
					if l.State != "mounted" || !strings.Contains(l.Image, "app") {
						t.Errorf("the layer of %s is %s: %s", l.Image, l.State, l.Reason)
					}
				}
				b.restart()
				if mounts, err := b.Mounts(b.ctx, "victim"); err != nil {
					t.Error(err)
				} else {
					b.sees(mounts, "a", honest)
				}
			})
		}
	}
}

// newContested opens a bed in which containerd has a victim's image, and another one that claims the victim's chainID by a forged table.
// A container of that one has read its layer, of which name is the snapshot.
func newContested(t *testing.T, f format) (b *bed, victim *image, evil *forgery, name string) {
	t.Helper()
	victim = newImage(t, "app", nil, f.make(t, file("a", honest)))
	b = newBed(t, newOrigin(t), nil)
	evil = forge(t, b.origin, victim, true, false)
	name = b.pull(evil.image)
	b.sees(b.run("evil", name), "a", forged)
	b.fetch(victim)
	return b, victim, evil, name
}

// TestContestedPrepare: who mounts what Prepare answers, and asks no more, does not see a contested layer before its diffID is proven,
// though it is mounted for another container: he sees the right one, or fails.
func TestContestedPrepare(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			b, _, _, name := newContested(t, f)
			mounts, err := b.Prepare(b.ctx, "victim", name)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := b.look(mounts, "a"); err == nil && string(got) != string(honest) {
				t.Errorf("saw %d bytes that are not the right ones", len(got))
			}
			mounts, err = b.Prepare(b.ctx, "again", name)
			if err != nil {
				t.Fatal(err)
			}
			b.sees(mounts, "a", honest)
		})
	}
}

// TestContestedInOneNamespace: what a namespace's images contest stays noted for who comes to a gate, though those of another one do not,
// until they no longer do.
func TestContestedInOneNamespace(t *testing.T) {
	var b binding
	for _, c := range []struct {
		namespace string
		rivals    int
		ours, all int
	}{{"ours", 1, 1, 1}, {"theirs", 0, 1, 1}, {"theirs", 2, 1, 3}, {"ours", 0, 0, 2}, {"theirs", 0, 0, 0}} {
		b.noteRivals(c.namespace, make([]layers.Source, c.rivals))
		if ours, all := len(b.rivalsIn("ours")), len(b.rivalsIn("")); ours != c.ours || all != c.all {
			t.Errorf("after %d rivals in namespace %s: %d in ours, %d in all; want %d, %d", c.rivals, c.namespace, ours, all, c.ours, c.all)
		}
	}
}

// TestNamespacesApart: a namespace is not given the snapshot by which another one's image claims the same chainID.
func TestNamespacesApart(t *testing.T) {
	victim := newImage(t, "app", nil, gzipLayer(t, file("a", honest)))
	o := newOrigin(t)
	evil := forge(t, o, victim, true, true)
	b := newBed(t, o, nil)
	first := b.pull(evil.image)
	b.ctx = namespaces.WithNamespace(t.Context(), "other")
	second := b.pull(victim)
	if first == second {
		t.Error("both namespaces have one snapshot")
	}
	b.sees(b.run("victim", second), "a", honest)
	// Without a filter everything is listed.
	names := map[string]bool{}
	if err := b.Walk(b.ctx, func(_ context.Context, info snapshots.Info) error { names[info.Name] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if !names[first] || !names[second] {
		t.Errorf("%s and %s are not both in %v", first, second, names)
	}
}

// TestSettledForItsNamespace: two namespaces have pulled an image that claims somebody's chainID. Once one of them has that somebody's
// image, too, it is shown his layer, and the other one is not: it was never let have it.
func TestSettledForItsNamespace(t *testing.T) {
	private := newImage(t, "private", nil, gzipLayer(t, file("a", honest)))
	o := newOrigin(t, private)
	evil := forge(t, o, private, true, true)
	b := newBed(t, o, nil)
	containerd := newDaemon(t, b)
	b.store = containerd.db.ContentStore() // each namespace has its own there
	b.restart()
	in := func(namespace string) { b.ctx = namespaces.WithNamespace(t.Context(), namespace) }
	in("thieves")
	theirs := containerd.pull("thieves", evil.image, nil)
	in("default")
	ours := containerd.pull("default", evil.image, nil)
	containerd.pull("default", private, nil) // which "exists already"
	containerd.run("default", ours, file("a", honest))
	in("thieves")
	if _, err := containerd.Prepare(b.ctx, "stolen", theirs); err != nil {
		t.Fatal(err)
	}
	if mounts, err := containerd.Mounts(b.ctx, "stolen"); err == nil {
		if got, err := b.look(mounts, "a"); err == nil && bytes.Equal(got, honest) {
			t.Error("the other namespace sees the private layer")
		}
	}
}

// complete fetches all of a layer.
func (b *bed) complete(l layer, name string) {
	b.t.Helper()
	for _, one := range b.bindings.all() {
		if f := one.image(); one.name() == name && f != nil {
			if err := f.PrefetchAll(b.ctx); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
				b.t.Fatal(err)
			}
		}
	}
}

// TestHeldRegistry: a repository that never answers holds up no other image with the same layer.
func TestHeldRegistry(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			l := f.make(t, file("a", honest))
			slow, quick := newImage(t, "slow", []string{"slow"}, l), newImage(t, "quick", []string{"quick"}, l)
			o := newOrigin(t, slow, quick)
			release := o.Silence("/v2/slow/blobs/")
			defer release()
			b := newBed(t, o, func(b *bed) { b.opts.Layers.ProofWait = claimWait })
			b.fetch(slow)
			for o.Requests("blobs", l.Digest().String()) == 0 { // on a busy machine it may be given up before it has asked
				b.decline(slow, 0, "")
			}
			b.ctx = namespaces.WithNamespace(t.Context(), "other")
			b.fetch(quick)
			b.resolve(quick) // else its Prepare has little patience, since nothing of the host has been seen to work
			b.sees(b.run("quick", b.pull(quick)), "a", honest)
		})
	}
}

// TestOpenedForAnother: the repository is asked together for all layers of an image that were opened for another one, and that nobody has
// claimed, and not for one after the other as containerd prepares them.
func TestOpenedForAnother(t *testing.T) {
	var all []layer
	for i := range 3 {
		all = append(all, estargzLayer(t, file(fmt.Sprint(i), noise(uint64(i), 300_000))))
	}
	im := newImage(t, "app", nil, all...)
	o := newOrigin(t, im)
	b := newBed(t, o, nil)
	b.fetch(im)
	if failed := b.resolve(im); len(failed) > 0 {
		t.Fatal(failed)
	}
	var mu sync.Mutex
	asked := map[string]bool{} // layers whose last byte was asked for
	o.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
		_, _, what := split(r.URL.Path)
		mu.Lock()
		defer mu.Unlock()
		for _, l := range all {
			last := l.Desc.Size - 1
			if what == l.Digest().String() && r.Header.Get("Range") == fmt.Sprintf("bytes=%d-%d", last, last) {
				asked[what] = true
			}
		}
		return false
	})
	b.ctx = namespaces.WithNamespace(t.Context(), "other")
	b.fetch(im)
	b.claim(im, 0, "")
	eventually(t, "all three are asked for", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(asked) == len(all)
	})
}

// TestKnownDigest: to know the digest of somebody's layer gives nobody the layer.
func TestKnownDigest(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			l := f.make(t, file("a", honest))
			owner, thief := newImage(t, "owner", []string{"owner"}, l), newImage(t, "thief", []string{"thief"}, l)
			o := newOrigin(t, owner, thief)
			o.Answer("/v2/thief/blobs/", http.StatusNotFound)
			b := newBed(t, o, nil)
			b.sees(b.run("owner", b.pull(owner)), "a", honest)
			b.fetch(thief)
			b.ctx = namespaces.WithNamespace(t.Context(), "thieves")
			b.resolve(thief)
			b.decline(thief, 0, "")
		})
	}
}

// TestStoredIsNoGrant: that containerd has a layer gives it to no repository that does not have it.
func TestStoredIsNoGrant(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			l := f.make(t, file("a", honest))
			owner, thief := newImage(t, "owner", []string{"owner"}, l), newImage(t, "thief", []string{"thief"}, l)
			o := newOrigin(t, owner, thief)
			b := newBed(t, o, withBlobs)
			b.put(l.Desc, l.Blob, b.from(owner))
			o.Answer("/blobs/", http.StatusNotFound)
			b.fetch(thief)
			b.resolve(thief)
			b.decline(thief, 0, "")
			b.sees(b.run("owner", b.pull(owner)), "a", honest)
			b.ctx = namespaces.WithNamespace(t.Context(), "thieves") // where containerd does not have it
			b.fetch(thief)
			b.resolve(thief)
			b.decline(thief, 0, "")
		})
	}
}

// TestGranted: a repository that has a layer, too, is asked once before its image gets what the cache has from another; not
// where the operator says so, nor where containerd has had the blob from there.
func TestGranted(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*bed)
		asks   int
	}{
		"verify": {nil, 1},
		"open": {func(b *bed) {
			b.opts.Layers.TrustOf = func(registry.Repository) layers.TrustPolicy { return layers.TrustPolicy{Shared: true} }
		}, 0},
		"in containerd too": {func(b *bed) { b.opts.Layers.Blobs = stored{store: b.store, labelled: true} }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := gzipLayer(t, file("a", honest))
			first, second := newImage(t, "first", []string{"first"}, l), newImage(t, "second", []string{"second"}, l)
			o := newOrigin(t, first, second)
			asks := atomic.Int32{}
			o.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
				if repo, kind, what := split(r.URL.Path); repo == "second" && kind == "blobs" && digest.Digest(what) == l.Digest() {
					asks.Add(1)
				}
				return false
			})
			b := newBed(t, o, c.change)
			b.sees(b.run("first", b.pull(first)), "a", honest)
			b.fetch(second)
			b.ctx = namespaces.WithNamespace(t.Context(), "other")
			name := b.claim(second, 0, "")
			b.sees(b.run("second", name), "a", honest)
			b.restart() // and is not forgotten
			b.remove("second", name)
			b.sees(b.run("again", b.claim(second, 0, "")), "a", honest)
			if n := int(asks.Load()); n != c.asks {
				t.Errorf("the second repository was asked %d times, want %d", n, c.asks)
			}
		})
	}
}

// TestContestedByImported: an image that came from no registry, as one that was built here or imported, has its own bytes, too, though
// somebody else's claims its chainID first; where nobody has them, it has none.
func TestContestedByImported(t *testing.T) {
	for _, f := range formats {
		for name, kept := range map[string]bool{"in the content store": true, "discarded": false} {
			t.Run(f.name+"/"+name, func(t *testing.T) {
				victim := newImage(t, "app", nil, f.make(t, file("a", honest)))
				o := newOrigin(t)
				evil := forge(t, o, victim, true, false)
				b := newBed(t, o, withBlobs)
				name := b.pull(evil.image)
				b.sees(b.run("evil", name), "a", forged) // nobody else has claimed it yet
				b.put(victim.ConfigDesc, victim.Config, nil)
				b.put(victim.Target, victim.Manifest, map[string]string{configRefLabel: victim.ConfigDesc.Digest.String()})
				if kept {
					b.put(victim.Layers[0].Desc, victim.Layers[0].Blob, nil)
					b.sees(b.run("victim", name), "a", honest)
					b.restart()
					b.sees(b.run("again", name), "a", honest)
					if n := evil.asked.Load(); n > 0 {
						t.Errorf("a repository that the image did not come from was asked %d times", n)
					}
					return
				}
				if _, err := b.Prepare(b.ctx, "victim", name); err != nil {
					t.Fatal(err)
				}
				if mounts, err := b.Mounts(b.ctx, "victim"); err == nil {
					t.Errorf("it was mounted: %v", mounts)
				}
			})
		}
	}
}
