package snapshotter

import (
	"os"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

// TestLostRoot: after the root was lost, what containerd asks for by the names that it knows is made anew, with what is below it, for
// whoever asks, and once.
func TestLostRoot(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			im := newImage(t, "app", nil, f.make(t, dir("d", 0o755), file("d/low", honest)), f.make(t, file("d/top", honest)))
			b := newBed(t, newOrigin(t, im), nil)
			top := b.pull(im)
			low := b.named(im.ChainIDs[0], "")
			b.sees(b.run("before", top), "d/low", honest)
			b.close()
			if err := os.RemoveAll(b.root); err != nil {
				t.Fatal(err)
			}
			b.open()
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					if info, err := b.Stat(b.ctx, top); err != nil || info.Parent != low {
						t.Errorf("got %+v, %v", info, err)
					}
				})
			}
			all.Wait()
			mounts := b.run("after", top)
			b.sees(mounts, "d/low", honest)
			b.sees(mounts, "d/top", honest)
			if n := len(b.Status().Layers); n != 2 {
				t.Errorf("%d snapshots of two layers", n)
			}
			if b.pull(im) != top { // and a pull finds it, as containerd wants
				t.Error("a pull makes another snapshot")
			}
		})
	}
}

// TestLostForGood: a snapshot of which no image is left, and one that containerd unpacked, are not found.
func TestLostForGood(t *testing.T) {
	im := newImage(t, "app", nil, estargzLayer(t, file("a", honest)))
	b := newBed(t, newOrigin(t, im), nil)
	b.fetch(im)
	for _, name := range []string{remotePrefix + "00112233445566778899aabbccddeeff", "default/7/" + im.ChainIDs[0].String()} {
		if _, err := b.Prepare(b.ctx, "container", name); !errdefs.IsNotFound(err) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := b.Stat(b.ctx, name); !errdefs.IsNotFound(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
