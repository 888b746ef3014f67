package images_test

import (
	"context"
	"fmt"
	"net/http"
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

// quietCollector has containerd collect garbage only when somebody asks for it.
const quietCollector = `
[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 0
  mutation_threshold = 0
`

// TestMeasuredProofsAndOthers: while 20 images are proven against a registry that is 80 ms away and one that hangs, calls of other
// snapshots take what they take without them. Only a collection of garbage, for which containerd lets no call in before those that it waits
// for have ended, has them wait for a proof, once a call. Once a host is known to hang, nothing waits for it. The same calls to overlayfs,
// in turn, say what the machine itself takes.
func TestMeasuredProofsAndOthers(t *testing.T) {
	s := testbed.New(t, testbed.Options{LogLevel: "info", ContainerdConfig: quietCollector})
	far, err := link.New(s.Addr, link.Options{RTT: 80 * time.Millisecond})
	testbed.Must(t, err)
	defer func() { testbed.Must(t, far.Close()) }()
	testbed.Must(t, s.PlainHTTP(far.Addr(), far.Addr()))
	hangs := newFaultyProxy(t, s)
	hang := fault(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() })
	hangs.fault.Store(&hang)
	c, err := client.New(s.Socket)
	testbed.Must(t, err)
	defer c.Close()
	dir, made := t.TempDir(), 0
	image := func(host string) string {
		made++
		layout := filepath.Join(dir, fmt.Sprint(made))
		testbed.Must(t, testbed.WriteTars(layout, "src", randomLayer(uint64(2*made), 100<<10), randomLayer(uint64(2*made+1), 100<<10)))
		testbed.Must(t, s.Push(t.Context(), layout, "src", fmt.Sprintf("proven%d:src", made)))
		return fmt.Sprintf("%s/proven%d:src", host, made)
	}
	for _, phase := range []struct {
		name    string
		hosts   []string
		collect bool
		most    time.Duration // beyond what overlayfs takes
	}{
		{name: "no collection pending", hosts: []string{far.Addr(), hangs.Listener.Addr().String()}, most: proofLongest / 2},
		{name: "with collections", hosts: []string{far.Addr(), hangs.Listener.Addr().String()}, collect: true, most: proofLongest},
		{name: "the host is known to hang", hosts: []string{hangs.Listener.Addr().String()}, collect: true, most: proofLongest / 2},
	} {
		t.Run(phase.name, func(t *testing.T) {
			const images = 20
			var refs []string
			for i := range images {
				refs = append(refs, image(phase.hosts[i%len(phase.hosts)]))
			}
			ctx, release, err := c.WithLease(namespaces.WithNamespace(t.Context(), s.Namespace)) // or the collector takes what is not used
			testbed.Must(t, err)
			defer func() { testbed.Must(t, release(context.WithoutCancel(ctx))) }()
			longest, calls := besideProofs(ctx, t, s, c, refs, phase.collect)
			t.Logf("%v times Prepare, Commit, View, Remove; the longest call: remora %s, overlayfs %s",
				calls, longest["remora"], longest["overlayfs"])
			if calls["remora"] == 0 || longest["remora"] > longest["overlayfs"]+phase.most {
				t.Errorf("%v calls; others waited %s, for overlayfs %s", calls, longest["remora"], longest["overlayfs"])
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
				if calls[name]++; took > longest[name] {
					longest[name] = took
					t.Logf("%s %s: %s by %s", time.Now().UTC().Format("05.000"), name, took, op)
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
