package snapshotter

import (
	"net/http"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// TestEachReadsFromItsOwn: images of two repositories share what the cache has of a layer, and what is missing comes to each from its own
// one, whichever came first.
func TestEachReadsFromItsOwn(t *testing.T) {
	for name, make := range map[string]func(testing.TB, ...member) layer{"by its table": estargzLayer, "read whole": gzipLayer} {
		t.Run(name, func(t *testing.T) {
			l, small, rest := large(t, make)
			first, second := newImage(t, "first", nil, l), newImage(t, "second", []string{"other"}, l)
			o := newOrigin(t, first, second)
			b := newBed(t, o, nil)
			if name == "read whole" {
				top := b.pull(first)
				b.run("before", top)
				b.remove("before", top)
				b.restart() // from now on it is read by the index that was made of it
			}
			b.sees(b.run("first", b.pull(first)), "small", small)
			b.ctx = namespaces.WithNamespace(t.Context(), "other")
			mounts := b.run("second", b.pull(second))
			all := b.bindings.all()
			if len(all) != 2 || all[0].image() != all[1].image() {
				t.Fatalf("%d snapshots, which share no image", len(all))
			}
			var mu sync.Mutex
			asked := map[string]int{}
			o.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
				if repo, kind, _ := split(r.URL.Path); kind == "blobs" {
					mu.Lock()
					defer mu.Unlock()
					asked[repo]++
				}
				return false
			})
			b.sees(mounts, "rest", rest)
			mu.Lock()
			defer mu.Unlock()
			if asked["first"] > 0 || asked["second"] == 0 {
				t.Errorf("for the second, repositories were asked: %v", asked)
			}
		})
	}
}
