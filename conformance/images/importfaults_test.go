package images_test

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/remora-storage/remora/conformance/testbed"
)

// cutEvery cuts a connection each n bytes of answers, and counts them.
func cutEvery(n int64, served *atomic.Int64) fault {
	left := atomic.Int64{}
	left.Store(n)
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		pass.ServeHTTP(&cutWriter{w, n, &left, served}, r)
	}
}

type cutWriter struct {
	http.ResponseWriter
	every        int64
	left, served *atomic.Int64
}

func (c *cutWriter) Write(p []byte) (int, error) {
	left := c.left.Add(-int64(len(p)))
	if left > 0 {
		c.served.Add(int64(len(p)))
		return c.ResponseWriter.Write(p)
	}
	c.left.Store(c.every)
	k := max(int64(len(p))+left, 0)
	c.served.Add(k)
	_, _ = c.ResponseWriter.Write(p[:k]) // the connection ends here anyway
	panic(http.ErrAbortHandler)
}

// TestImportCut: a connection that breaks at every tenth of a download goes on where it broke.
func TestImportCut(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	ref := plainImage(t, s, testbed.Python)
	layout, err := testbed.Python.Layout(t.Context())
	testbed.Must(t, err)
	total := int64(0)
	for _, l := range manifestOf(t, layout, "src").Layers {
		total += l.Size
	}
	p := newFaultyProxy(t, s)
	var served atomic.Int64
	f := cutEvery(total/10, &served)
	p.fault.Store(&f)
	cutRef := strings.Replace(ref, s.Addr, p.Listener.Addr().String(), 1)
	_, err = s.Snapctl(t.Context(), "pull", cutRef)
	testbed.Must(t, err)
	onlyFormat(t, s, cutRef, "import")
	testbed.RunImage(t, s, cutRef, "python", "remora", testbed.Python)
	if n := served.Load(); n > total*11/10 {
		t.Errorf("%d bytes were served for an image of %d: it was not resumed", n, total)
	}
}

// TestImportWrongBytes: what is not the blob is asked for again, and never mounted.
func TestImportWrongBytes(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	ref := plainImage(t, s, testbed.Programs[1])
	p := newFaultyProxy(t, s)
	asked := atomic.Int64{}
	f := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if asked.Add(1) == 3 {
			wrongBytes(w, r, pass)
			return
		}
		pass.ServeHTTP(w, r)
	})
	p.fault.Store(&f)
	wrong := strings.Replace(ref, s.Addr, p.Listener.Addr().String(), 1)
	_, err := s.Snapctl(t.Context(), "pull", wrong)
	testbed.Must(t, err)
	onlyFormat(t, s, wrong, "import")
	sameTree(t, s, wrong, ref, isRemote)
}

// TestImportKilled: remorad is killed while it imports two images, again and again. What arrived is used;
// nothing that is half made is mounted.
func TestImportKilled(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	ref, other := plainImage(t, s, testbed.Python), plainImage(t, s, testbed.Programs[1])
	p := newFaultyProxy(t, s)
	slow := func(ref string) string { return strings.Replace(ref, s.Addr, p.Listener.Addr().String(), 1) }
	p.delay.Store(int64(60 * time.Millisecond))
	const seed = 20261125
	r := rand.New(rand.NewPCG(seed, 0))
	goesOn := func() bool { return countLog(t, s, "import goes on") > 0 }
	for round := 0; round < testbed.Rounds(5, 60) || !goesOn() && round < 60; round++ { // a slow machine may be killed before anything arrived
		ctx, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		for _, one := range []string{slow(ref), slow(other)} {
			load.Go(func() { _, _ = s.Snapctl(ctx, "pull", one) }) // fails: remorad dies meanwhile
		}
		time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
		testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
		testbed.Must(t, s.StartRemorad())
		st, err := s.Status(t.Context())
		testbed.Must(t, err)
		for _, l := range st.Layers {
			// One whose index was made in an earlier round, and whose import was not recorded yet, is lazy.
			if l.State == "mounted" && l.Format == "import" && l.PresentBytes != l.TotalBytes {
				t.Errorf("layer %s is mounted with %d of %d bytes", l.Digest, l.PresentBytes, l.TotalBytes)
			}
		}
		cancel()
		load.Wait()
	}
	p.delay.Store(0)
	for _, one := range []struct {
		ref string
		p   testbed.Program
	}{{ref, testbed.Python}, {other, testbed.Programs[1]}} {
		_, err := s.Snapctl(t.Context(), "pull", slow(one.ref))
		testbed.Must(t, err)
		testbed.RunImage(t, s, slow(one.ref), one.p.Name, "remora", one.p)
		sameTree(t, s, slow(one.ref), one.ref, isRemote)
	}
	if !goesOn() {
		t.Error("no import went on where it was")
	}
}

// TestMeasuredImportsAndOthers: while the images of 20 pods are imported and containerd collects garbage, nobody
// else's snapshots wait for that, but for a proof at most. The same calls to overlayfs, in turn, say what the machine itself
// takes.
func TestMeasuredImportsAndOthers(t *testing.T) {
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	const pods = 20
	dir := t.TempDir()
	for i := range pods {
		layout := filepath.Join(dir, fmt.Sprint(i))
		testbed.Must(t, testbed.WriteTars(layout, "src", randomLayer(uint64(i), 6<<20), randomLayer(uint64(100+i), 6<<20)))
		testbed.Must(t, s.Push(t.Context(), layout, "src", fmt.Sprintf("pod%d:src", i)))
	}
	p := newFaultyProxy(t, s)
	const delay = 3 * time.Second // of each answer behind its first bytes, so of a call that waited for one; a proof takes 1 s at most
	slow := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		hold := make(chan struct{})
		time.AfterFunc(delay, func() { close(hold) })
		holding(hold)(w, r, pass)
	})
	p.fault.Store(&slow)
	c, err := client.New(s.Socket)
	testbed.Must(t, err)
	defer c.Close()
	ctx, release, err := c.WithLease(namespaces.WithNamespace(t.Context(), s.Namespace)) // or the collector takes what is not used
	testbed.Must(t, err)
	defer func() { testbed.Must(t, release(context.WithoutCancel(ctx))) }()
	var imports, others sync.WaitGroup
	done := make(chan struct{})
	for i := range pods {
		imports.Go(func() {
			ref := fmt.Sprintf("%s/pod%d:src", p.Listener.Addr(), i)
			if err := outsideClient(ctx, s, ref, "", true); err != nil {
				t.Errorf("%s: %v", ref, err)
			}
		})
	}
	longest := map[string]time.Duration{}
	others.Go(func() { // the garbage collector
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
				_, _ = s.Ctr(ctx, "content", "prune", "references") // only its collection matters
			}
		}
	})
	calls := 0
	others.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			for _, name := range []string{"remora", "overlayfs"} {
				took, _, err := useSnapshots(ctx, c, name, i)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				longest[name] = max(longest[name], took)
			}
			calls++
		}
	})
	imports.Wait() // the pulls: the imports go on
	claimed := 0
	testbed.WaitFor(t, "all imports", func() bool {
		st, err := s.Status(t.Context())
		testbed.Must(t, err)
		claimed = len(st.Layers)
		return !slices.ContainsFunc(st.Layers, func(l testbed.LayerStatus) bool { return l.State != "mounted" })
	})
	if t.Logf("%d of %d layers were claimed", claimed, 2*pods); claimed < pods/2 { // where many are proven at once, some are late
		t.Errorf("%d of %d layers were claimed", claimed, 2*pods)
	}
	close(done)
	others.Wait()
	t.Logf("%d times Prepare, View, Remove; the longest call: remora %s, overlayfs %s", calls, longest["remora"], longest["overlayfs"])
	if calls == 0 || longest["remora"] > longest["overlayfs"]+delay/2 {
		t.Errorf("others waited %s, for overlayfs %s", longest["remora"], longest["overlayfs"])
	}
}

// useSnapshots prepares, views and removes snapshots, and returns which call took longest, and how long.
func useSnapshots(ctx context.Context, c *client.Client, name string, i int) (longest time.Duration, by string, err error) {
	sn := c.SnapshotService(name)
	timed := func(call string, f func() error) {
		if err != nil {
			return
		}
		began := time.Now()
		if err = f(); time.Since(began) > longest {
			longest, by = time.Since(began), call
		}
	}
	active, base, view := fmt.Sprint("other-", i), fmt.Sprint("other-base-", i), fmt.Sprint("other-view-", i)
	timed("Prepare", func() error { _, err := sn.Prepare(ctx, active, ""); return err })
	timed("Commit", func() error { return sn.Commit(ctx, base, active) })
	timed("View", func() error { _, err := sn.View(ctx, view, base); return err })
	timed("Remove", func() error { return sn.Remove(ctx, view) })
	timed("Remove", func() error { return sn.Remove(ctx, base) })
	return longest, by, err
}

// randomLayer is a layer of a file that does not pack.
func randomLayer(seed uint64, n int64) func(*tar.Writer) error {
	return func(tw *tar.Writer) error {
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprint("file-", seed), Typeflag: tar.TypeReg, Mode: 0o644, Size: n}); err != nil {
			return err
		}
		_, err := tw.Write(randomBytes(seed, n))
		return err
	}
}

func randomBytes(seed uint64, n int64) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p) // it cannot fail
	return p
}
