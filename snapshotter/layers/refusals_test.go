package layers

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/fs/layout"
	"github.com/remora-storage/remora/remote/registry"
	"github.com/remora-storage/remora/snapshotter/internal/imagetest"
)

// TestRefusalsWaitForNoDisk: that a layer is beyond [limits] is known before it is written, and so much of the reason is that a thousand
// of them are no burden.
func TestRefusalsWaitForNoDisk(t *testing.T) {
	l := newOf(t, imagetest.NewOrigin(t), Options{})
	src := Source{Repo: registry.Repository{Host: "reg.test", Path: "app"}, Descriptor: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("a layer"), Size: 1}}
	for _, name := range []string{"", "x"} { // one of them is cut within a letter
		err := fmt.Errorf("%w: %s%s", layout.ErrBeyond, name, strings.Repeat("é", 10_000))
		l.refusals.saving.Lock()
		noted := make(chan struct{})
		go func() {
			defer close(noted)
			l.refusals.note(&src, err)
		}()
		known := new(remembered)
		for !errors.As(l.refusals.of(&src), &known) || !strings.HasPrefix(err.Error(), known.Why) {
			time.Sleep(time.Millisecond)
		}
		l.refusals.saving.Unlock()
		<-noted
		again := openRefusals(filepath.Dir(l.refusals.path), l.opts).of(&src)
		if !errors.As(again, &known) || known.Why == "" || len(known.Why) > 500 || !strings.HasPrefix(err.Error(), known.Why) {
			t.Errorf("of %d bytes, got %v", len(err.Error()), again)
		}
	}
}
