package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/cache/blob"
	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/fs/scan"
	"github.com/remora-storage/remora/internal/fair"
	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/internal/memorytest"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// TestKeptIndexTakesMemory: what an import keeps to make the layer's index of takes its share of the memory until that is made; if
// there is none to wait with, it is made at once, by the import's share.
func TestKeptIndexTakesMemory(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := scan.Scan(t.Context(), &b, blob.Plain, scan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	src := &Source{Descriptor: ocispec.Descriptor{Digest: layer.Blob}}
	n := layer.IndexMemory()
	for name, taken := range map[string]int64{"half of what new shares may have is taken": n, "all is taken": 3 * n} {
		t.Run(name, func(t *testing.T) {
			budget := memory.New(4 * n) // three quarters for new shares
			giveBack, err := memorytest.Spend(t.Context(), budget)
			if err != nil {
				t.Fatal(err)
			}
			if taken < 3*n {
				giveBack()
				hold, err := budget.Acquire(t.Context(), "others", taken)
				if err != nil {
					t.Fatal(err)
				}
				giveBack = hold.Release
			}
			life, end := context.WithCancel(t.Context())
			x := Indexes{
				dir: filepath.Join(t.TempDir(), "indexes"), log: imagetest.LogOf(t), decoder: &decoder{memory: budget},
				life: life, started: &sync.WaitGroup{}, making: map[digest.Digest]chan struct{}{},
			}
			asked := int64(0)
			x.keep(src, layer, &layout.Limits{Grow: func(n int64) error { asked += n; return nil }})
			_, err = os.Stat(x.path(layer.Blob))
			more := int64(0)
			if taken == 3*n { // what the layer keeps for it, the scan has asked for
				more = layer.EncodeMemory()
			}
			if made := err == nil; made != (more > 0) || asked != more {
				t.Errorf("the index is made: %v; the import was asked for %d bytes, want %d", made, asked, more)
			}
			if one, free := budget.Try("another", n+1); free {
				one.Release()
				t.Error("nothing is taken for the index that waits")
			}
			end()
			x.started.Wait()
			giveBack()
			for _, who := range []fair.User{"one", "another"} {
				if one, free := budget.Try(who, 3*n/2); !free {
					t.Error("its memory is not given back")
				} else {
					defer one.Release()
				}
			}
			if _, err := os.Stat(x.path(layer.Blob)); err != nil {
				t.Error(err)
			}
		})
	}
}
