package images_test

import (
	"context"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestKilledUnderLoad kills remorad at random moments, while images are pulled, read by several
// readers and removed. Whatever was cached by then must be right.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	src, lazy := testbed.Pushed(t, s, testbed.Python)
	_, other := testbed.Pushed(t, s, testbed.Programs[1])
	const seed = 20260601
	r := rand.New(rand.NewPCG(seed, 0))
	for round := range testbed.Rounds(6, 100) {
		ctx, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		load.Go(func() { // errors are expected: remorad dies meanwhile
			_, _ = s.Snapctl(ctx, "pull", lazy)
			for w := range 3 {
				load.Go(func() { readSome(ctx, filepath.Join(s.Root, "snapshots"), uint64(round*10+w)) })
			}
		})
		load.Go(func() {
			_, _ = s.Snapctl(ctx, "pull", other)
			_, _ = s.Ctr(ctx, "images", "rm", "--sync", other)
		})
		time.Sleep(time.Duration(r.IntN(1200)) * time.Millisecond)
		testbed.Must(t, s.StopRemorad(syscall.SIGKILL))
		testbed.Must(t, s.StartRemorad()) // readers wait for it
		cancel()
		load.Wait()
	}
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	testbed.RunImage(t, s, lazy, "after", "remora", testbed.Python)
	sameTree(t, s, lazy, src, func(string) bool { return false })
	_, err = s.Snapctl(t.Context(), "fetch", "--cache-only", lazy) // checks every diffID
	testbed.Must(t, err)
}

// readSome reads files in an order of its own until its context ends.
func readSome(ctx context.Context, root string, seed uint64) {
	var files []string
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error { // as far as it goes
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(d.Name(), "layer.json") {
			files = append(files, p)
		}
		return ctx.Err()
	})
	r := rand.New(rand.NewPCG(seed, 1))
	r.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for _, f := range files {
		if ctx.Err() != nil {
			return
		}
		_, _ = os.ReadFile(f) // may fail: remorad dies meanwhile
	}
}

// TestBeforeUse: with diff_id = before_use a layer is complete and checked before its first
// mount, and a wrong one is never mounted.
func TestBeforeUse(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Config: "[trust]\ndiff_id = \"before_use\"\n"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	lazyLayers(t, s, 3, "direct")
	testbed.RunImage(t, s, lazy, "c", "remora", testbed.Python)

	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, writeManyLayers(layout, 1))
	_, err = s.Snapctl(t.Context(), "convert", "oci:"+layout+":src", "oci:"+layout+":lazy")
	testbed.Must(t, err)
	testbed.Must(t, liar(layout, "lazy", "liar"))
	testbed.Must(t, s.Push(t.Context(), layout, "liar", "liar:1"))
	if _, err := s.Snapctl(t.Context(), "pull", s.Ref("liar:1")); err == nil || !strings.Contains(err.Error(), "diffID") {
		t.Errorf("pull of wrong content: %v", err)
	}
}
