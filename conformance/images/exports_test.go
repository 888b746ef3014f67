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
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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
	mustExport(t, s, ref, manifestOf(t, layout, "lazy"))
}

// mustExport insists that an export of an image has all of its layers.
func mustExport(t *testing.T, s *testbed.Stack, ref string, manifest ocispec.Manifest) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	_, err := s.Ctr(t.Context(), "images", "export", file, ref)
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
	for _, l := range manifest.Layers {
		if !in["blobs/sha256/"+l.Digest.Encoded()] {
			t.Errorf("the export of %s in namespace %s has no layer %s", ref, s.Namespace, l.Digest)
		}
	}
}

// TestExportFromEachNamespace: blobs are kept for the images of each namespace: of layers that remorad supplies, which a second namespace
// never downloads, and of those that containerd has unpacked, whose blobs it may have dropped.
func TestExportFromEachNamespace(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	s.Configure(fmt.Sprintf("[import]\nkeep_blobs = true\n[import.for.%q]\nmode = \"ordinary\"\n", s.Addr+"/ordinary"))
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
	layout, ordinary := byImage(t), filepath.Join(t.TempDir(), "ordinary")
	convert(t, s, "oci:"+layout+":src", "oci:"+layout+":lazy")
	testbed.Must(t, testbed.WriteTars(ordinary, "src", randomLayer(81, 1<<20), randomLayer(82, 100<<10)))
	images := map[string]ocispec.Manifest{}
	for name, from := range map[string][2]string{"lazy:1": {layout, "lazy"}, "import:1": {layout, "src"}, "ordinary:1": {ordinary, "src"}} {
		testbed.Must(t, s.Push(t.Context(), from[0], from[1], name))
		images[name] = manifestOf(t, from[0], from[1])
	}
	spaces := []*testbed.Stack{s, s.In(s.Namespace + "-other")}
	for _, in := range spaces {
		for name, manifest := range images {
			_, err := in.Ctr(t.Context(), "images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", s.Ref(name))
			testbed.Must(t, err)
			if name != "ordinary:1" {
				continue
			}
			for _, l := range manifest.Layers {
				_, err := in.Ctr(t.Context(), "content", "rm", l.Digest.String())
				testbed.Must(t, err)
			}
		}
	}
	for _, in := range spaces {
		for name, manifest := range images {
			testbed.WaitFor(t, "the blobs of "+name+" to come", func() bool { return missingBlobs(t, in, s.Ref(name)) == 0 })
			mustExport(t, in, s.Ref(name), manifest)
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
