package layers

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/annotation"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// TestAheadsShare: layers whose author says that their starts need very much leave others some of the memory for beginnings, and give
// it back.
func TestAheadsShare(t *testing.T) {
	l := newOf(t, imagetest.NewOrigin(t), Options{})
	source := func(host, path string, i int) *Source {
		return &Source{Repo: registry.Repository{Host: host, Path: path}, Descriptor: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(fmt.Sprint(host, path, i)), Size: 1 << 30,
			Annotations: map[string]string{annotation.StartSize: fmt.Sprint(maxAhead)},
		}}
	}
	add := func(host, path string) (all []*Source) {
		for i := range 20 {
			if s := source(host, path, i); l.Aheads.Add(s) != nil {
				all = append(all, s)
			}
		}
		return all
	}
	first := add("reg.test", "evil")
	if len(first) != maxAheadWithin/maxAhead {
		t.Errorf("one repository has the beginnings of %d layers", len(first))
	}
	for _, host := range []string{"other.test", "reg.test"} {
		s := source(host, "app", 0)
		s.Descriptor.Annotations[annotation.StartSize] = fmt.Sprint(8 << 20)
		if l.Aheads.Add(s) == nil {
			t.Errorf("there is nothing left for %s", s.Repo)
		}
		l.Aheads.Drop(s)
	}
	for _, s := range first {
		l.Aheads.Drop(s)
	}
	if used := l.Aheads.shares.Used(); used != 0 {
		t.Errorf("%d bytes are in use by nobody", used)
	}
}
