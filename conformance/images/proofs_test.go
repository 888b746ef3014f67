package images_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/conformance/tools/link"
)

// proofLongest is what a Prepare waits at most until its layer is proven.
const proofLongest = time.Second

// lateCollector has containerd collect no garbage before somebody asks for it.
const lateCollector = `
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "1h"
`

// TestMeasuredProofsAndOthers: while 20 images are proven against a registry that is 80 ms away and one that hangs, calls of other
// snapshots take what they take without them. Only a collection of garbage, for which containerd lets no call in before those that it waits
// for have ended, has them wait for a proof, once a call. Once a host is known to hang, nothing waits for it: what is left is what the same
// pulls take from a host that refuses. The same calls to overlayfs, in turn, say what the machine itself takes.
func TestMeasuredProofsAndOthers(t *testing.T) {
	s := testbed.New(t, testbed.Options{LogLevel: "info", ContainerdConfig: lateCollector})
	far, err := link.New(s.Addr, link.Options{RTT: 80 * time.Millisecond})
	testbed.Must(t, err)
	defer func() { testbed.Must(t, far.Close()) }()
	testbed.Must(t, s.PlainHTTP(far.Addr(), far.Addr()))
	var layers sync.Map // by digest: those that two registries do not serve
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.Addr})
	without := func(layer http.HandlerFunc) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, ok := layers.Load(path.Base(r.URL.Path)); ok {
				layer(w, r)
				return
			}
			pass.ServeHTTP(w, r)
		}))
		t.Cleanup(server.Close)
		host := server.Listener.Addr().String()
		testbed.Must(t, s.PlainHTTP(host, host))
		return host
	}
	hanging, refusing := without(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), without(http.NotFound)
	c, err := client.New(s.Socket)
	testbed.Must(t, err)
	defer c.Close()
	dir, made := t.TempDir(), 0
	image := func(host string) string {
		made++
		layout := filepath.Join(dir, fmt.Sprint(made))
		testbed.Must(t, testbed.WriteTars(layout, "src", randomLayer(uint64(2*made), 100<<10), randomLayer(uint64(2*made+1), 100<<10)))
		testbed.Must(t, s.Push(t.Context(), layout, "src", fmt.Sprintf("proven%d:src", made)))
		if host != far.Addr() {
			for _, l := range manifestOf(t, layout, "src").Layers {
				layers.Store(l.Digest.String(), true)
			}
		}
		return fmt.Sprintf("%s/proven%d:src", host, made)
	}
	const images = 20
	phases := []struct {
		name    string
		hosts   []string
		collect bool
		most    time.Duration // beyond twice what overlayfs takes
		refs    []string
	}{
		{name: "no collection pending", hosts: []string{far.Addr(), hanging}, most: proofLongest / 2},
		{name: "with collections", hosts: []string{far.Addr(), hanging}, collect: true, most: proofLongest},
		{name: "the host is known to hang", hosts: []string{hanging}, collect: true, most: proofLongest / 2},
		{name: "the host refuses", hosts: []string{refusing}, collect: true, most: proofLongest / 2},
	}
	for i := range phases {
		for k := range images {
			phases[i].refs = append(phases[i].refs, image(phases[i].hosts[k%len(phases[i].hosts)]))
		}
	}
	for _, phase := range phases {
		t.Run(phase.name, func(t *testing.T) {
			ctx, release, err := c.WithLease(namespaces.WithNamespace(t.Context(), s.Namespace)) // or the collector takes what is not used
			testbed.Must(t, err)
			defer func() { testbed.Must(t, release(context.WithoutCancel(ctx))) }()
			hangs := len(phase.hosts) == 1 && phase.hosts[0] == hanging
			if hangs {
				known, stop := context.WithTimeout(ctx, 2*proofLongest)
				_ = outsideClient(known, s, image(hanging), "", true) // it never ends
				stop()
			}
			declined, unawaited := countLog(t, s, "layer takes the ordinary path"), countLog(t, s, "was not waited for")
			longest, calls := besideProofs(ctx, t, s, c, phase.refs, phase.collect)
			t.Logf("Prepare, Commit, View, Remove: %v times; the longest call: remora %s, overlayfs %s",
				calls, longest["remora"], longest["overlayfs"])
			if calls["remora"] == 0 || longest["remora"] > 2*longest["overlayfs"]+phase.most {
				t.Errorf("%v calls; others waited %s, for overlayfs %s", calls, longest["remora"], longest["overlayfs"])
			}
			declined, unawaited = countLog(t, s, "layer takes the ordinary path")-declined, countLog(t, s, "was not waited for")-unawaited
			if hangs && (declined < images || unawaited != declined) {
				t.Errorf("of %d layers of a host that is known to hang %d were not waited for", declined, unawaited)
			}
		})
	}
}

// besideProofs pulls images for a few seconds, with a collection of garbage each tenth of one if collect is true, and returns the longest
// call that others made meanwhile, by snapshotter, and how many times they made all.
func besideProofs(
	ctx context.Context, t *testing.T, s *testbed.Stack, c *client.Client, refs []string, collect bool,
) (longest map[string]time.Duration, calls map[string]int) {
	pulling, stop := context.WithTimeout(ctx, 4*time.Second)
	defer stop()
	var all sync.WaitGroup
	for _, ref := range refs {
		all.Go(func() { _ = outsideClient(pulling, s, ref, "", true) }) // those of the host that hangs never end
	}
	if collect {
		all.Go(func() {
			for pulling.Err() == nil {
				if err := collectGarbage(ctx, c); err != nil {
					t.Error(err)
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	longest, calls = map[string]time.Duration{}, map[string]int{}
	var mu sync.Mutex // guards both
	for _, name := range []string{"remora", "overlayfs"} {
		all.Go(func() {
			for i := 0; pulling.Err() == nil; i++ {
				took, op, err := useSnapshots(ctx, c, name, i)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				mu.Lock()
				calls[name]++
				if took > longest[name] {
					longest[name] = took
					t.Logf("%s: %s by %s", name, took, op)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return longest, calls
}

// collectGarbage has containerd collect garbage, and returns when it has.
func collectGarbage(ctx context.Context, c *client.Client) error {
	lease, err := c.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	return c.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
}
