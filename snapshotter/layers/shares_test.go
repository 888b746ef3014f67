package layers

import (
	"fmt"
	"testing"
	"time"

	"github.com/remora-storage/remora/internal/memory"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// TestRepositoriesShare: a repository that never gives its layers leaves others of its registry what they need to have theirs: places
// for imports and indexes, memory and requests.
func TestRepositoriesShare(t *testing.T) {
	for name, make := range map[string]func(testing.TB, ...imagetest.Member) imagetest.Layer{
		"imported": imagetest.GzipLayer, "indexed": imagetest.EstargzLayer,
	} {
		t.Run(name, func(t *testing.T) {
			var evil []imagetest.Layer
			for i := range 40 {
				evil = append(evil, make(t, imagetest.File(fmt.Sprint(i), imagetest.Noise(uint64(i), 5000))))
			}
			bad := imagetest.NewImage(t, "evil", nil, evil...)
			good := imagetest.NewImage(t, "app", nil, make(t, imagetest.File("a", imagetest.Noise(99, 5000))))
			o := imagetest.NewOrigin(t, bad, good)
			defer o.Silence("/v2/evil/blobs/")()
			l := newOf(t, o, Options{Memory: memory.New(256 << 20)})
			for i := range bad.Layers {
				src := sourceOf(o, bad)
				src.Descriptor, src.DiffID = bad.Layers[i].Desc, bad.Layers[i].DiffID
				l.Open(src)
			}
			asked := func() (n int) {
				for _, one := range evil {
					n += min(o.Requests("blobs", one.Digest().String()), 1)
				}
				return n
			}
			for deadline := time.Now().Add(10 * time.Second); asked() < 12 && time.Now().Before(deadline); { // all that it can get
				time.Sleep(time.Millisecond)
			}
			began := time.Now()
			opening := l.Open(sourceOf(o, good))
			select {
			case <-opening.Done():
				if err := opening.Err(); err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Error("another repository of the registry waits for it")
			}
			t.Logf("opened in %s, beside %d layers that do not come", time.Since(began), asked())
		})
	}
}
