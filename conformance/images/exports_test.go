package images_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestExportOfKept: with [import] keep_blobs an image can be exported whole, once its layers have come in the background: those that
// are read by an index, too. Until then status and doctor say that it cannot.
func TestExportOfKept(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: "[import]\nkeep_blobs = true\n"})
	layout := byImage(t)
	convert(t, s, "oci:"+layout+":src", "oci:"+layout+":lazy")
	testbed.Must(t, s.Push(t.Context(), layout, "lazy", "kept:lazy"))
	p := newFaultyProxy(t, s)
	hold := make(chan struct{})
	held := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		var from, to int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err == nil && from == 0 && to > 64<<10 {
			select { // all of a layer is asked for
			case <-hold:
			case <-r.Context().Done():
			}
		}
		pass.ServeHTTP(w, r)
	})
	p.fault.Store(&held)
	ref := p.Listener.Addr().String() + "/kept:lazy"
	_, err := s.Snapctl(t.Context(), "pull", ref)
	testbed.Must(t, err)
	if n := missingBlobs(t, s, ref); n != len(byLayers) {
		t.Errorf("%d blobs are missing right after the pull, want %d", n, len(byLayers))
	}
	if out, _ := s.Snapctl(t.Context(), "doctor"); !strings.Contains(out, "1 images in namespace") {
		t.Errorf("doctor says nothing of it:\n%s", out)
	}
	close(hold)
	testbed.WaitFor(t, "the blobs to come", func() bool { return missingBlobs(t, s, ref) == 0 })
	file := filepath.Join(t.TempDir(), "image.tar")
	_, err = s.Ctr(t.Context(), "images", "export", file, ref)
	testbed.Must(t, err)
	f, err := os.Open(file)
	testbed.Must(t, err)
	defer f.Close()
	in := map[string]bool{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		testbed.Must(t, err)
		in[h.Name] = true
	}
	for _, l := range manifestOf(t, layout, "lazy").Layers {
		if !in["blobs/sha256/"+l.Digest.Encoded()] {
			t.Errorf("the export has no layer %s", l.Digest)
		}
	}
}

// missingBlobs is how many blobs an export would miss, as status says.
func missingBlobs(t *testing.T, s *testbed.Stack, ref string) int {
	t.Helper()
	out, err := s.Snapctl(t.Context(), "--json", "status", ref)
	testbed.Must(t, err)
	var st struct {
		Missing []string `json:"missing_blobs"`
	}
	testbed.Must(t, json.Unmarshal([]byte(out), &st))
	return len(st.Missing)
}
