package images_test

import (
	"archive/tar"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/remora-storage/remora/conformance/testbed"
)

// TestMountedWhileImported: a client that mounts an image right after its pull, by what View answers and without a word to
// remorad, gets the whole image, though a large layer below is still on its way: as it is, by a table of contents, and of one
// layer alone, which is a bind mount. If the layer
// never comes, the mount fails.
func TestMountedWhileImported(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: impatient})
	dir := t.TempDir()
	for name, tars := range map[string][]func(*tar.Writer) error{
		"one": {randomLayer(1, 8<<20)}, "three": {randomLayer(2, 8<<20), randomLayer(3, 1<<20), randomLayer(4, 1<<20)},
	} {
		layout := filepath.Join(dir, name)
		testbed.Must(t, testbed.WriteTars(layout, "src", tars...))
		testbed.Must(t, s.Push(t.Context(), layout, "src", name+":src"))
		convert(t, s, "oci:"+layout+":src", s.Ref(name+":lazy"))
	}
	p := newFaultyProxy(t, s)
	pulls := []func(ref string) error{
		func(ref string) error {
			_, err := s.Ctr(t.Context(), "images", "pull", "--hosts-dir", s.HostsDir, "--snapshotter", "remora", ref)
			return err
		},
		func(ref string) error { return outsideClient(t.Context(), s, ref, true) },
	}
	for _, name := range []string{"one", "three"} {
		for _, tag := range []string{"src", "lazy"} {
			ordinaryTree(t, s, s.Ref(name+":src"))
			t.Run(name+" "+tag, func(t *testing.T) {
				ref := fmt.Sprintf("%s/%s:%s", p.Listener.Addr(), name, tag)
				hold := make(chan struct{})
				held := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
					select {
					case <-hold:
						pass.ServeHTTP(w, r)
					case <-r.Context().Done():
					}
				})
				p.fault.Store(&held)
				testbed.Must(t, pulls[len(tag)%2](ref))
				time.AfterFunc(time.Second, func() { close(hold) }) // the mount below begins before that
				sameTree(t, s, ref, s.Ref(name+":src"), func(string) bool { return false })
				removeAll(t, s, ref)
			})
		}
	}
	never := fault(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		time.Sleep(500 * time.Millisecond) // the pull is over
		w.WriteHeader(http.StatusNotFound)
	})
	p.fault.Store(&never)
	ref := p.Listener.Addr().String() + "/three:src"
	testbed.Must(t, pulls[0](ref))
	root := filepath.Join(dir, "root")
	testbed.Must(t, os.Mkdir(root, 0o755))
	if out, err := s.Ctr(t.Context(), "images", "mount", "--snapshotter", "remora", ref, root); err == nil {
		t.Errorf("an image without its layers is mounted: %s", out)
	}
}
