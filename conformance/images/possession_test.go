package images_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/remora-storage/remora/conformance/testbed"
)

// privateImage pushes an image of one layer of a kind, and returns its layout, its layer and what its file "pad" has.
func privateImage(t *testing.T, s *testbed.Stack, kind, name string) (layout string, layer ocispec.Descriptor, pad []byte) {
	t.Helper()
	layout, tag := filepath.Join(t.TempDir(), "private"), "src"
	pad = padOf(name)
	testbed.Must(t, testbed.WriteTars(layout, "src", whoLayer(name)))
	if kind == "estargz" || kind == "zstdchunked" {
		tag = "lazy"
		convert(t, s, "--format", kind, "oci:"+layout+":src", "oci:"+layout+":lazy")
	}
	testbed.Must(t, s.Push(t.Context(), layout, tag, name+":1"))
	return layout, manifestOf(t, layout, tag).Layers[0], pad
}

// pretenders are how a registry answers for a layer that it has not, given the right bytes.
var pretenders = map[string]func(w http.ResponseWriter, r *http.Request, right []byte){
	"garbage by range": func(w http.ResponseWriter, r *http.Request, right []byte) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, len(right))))
	},
	"garbage whole": func(w http.ResponseWriter, _ *http.Request, right []byte) { _, _ = w.Write(make([]byte, len(right))) },
	"HEAD alone": func(w http.ResponseWriter, r *http.Request, right []byte) {
		if r.Method != http.MethodHead {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(right)))
	},
	// Whoever had an earlier layer may know the archive's head, and the table of contents.
	"all but the data": func(w http.ResponseWriter, r *http.Request, right []byte) {
		p := bytes.Clone(right)
		clear(p[1000 : len(p)-20_000])
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
	},
}

// TestPretender: a registry that answers for the digest of somebody's private layer, which the node has, does not get the layer for its
// images: of each kind, while the layer is in the cache, when only the index that was made of it is, and if it came first.
func TestPretender(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	owners, thieves := newFaultyProxy(t, s), newFaultyProxyOn(t, s, "127.0.0.2", false)
	var lies sync.Map // by the layer's digest
	lie := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		if f, ok := lies.Load(filepath.Base(r.URL.Path)); ok {
			f.(func(http.ResponseWriter, *http.Request))(w, r)
			return
		}
		pass.ServeHTTP(w, r)
	})
	thieves.fault.Store(&lie)
	thieves.every.Store(true)
	kinds := []string{"gzip", "estargz", "zstdchunked"}
	for _, c := range testbed.Covering(t, testbed.Combinations(kinds, []string{"after", "removed", "before"},
		[]string{"garbage by range", "garbage whole", "HEAD alone", "all but the data"})) {
		kind, order, how := c[0], c[1], c[2]
		t.Run(kind+"/"+order+"/"+how, func(t *testing.T) {
			name := strings.ToLower(strings.ReplaceAll("private-"+kind+"-"+order+"-"+how, " ", "-"))
			layout, layer, pad := privateImage(t, s, kind, name)
			right, err := os.ReadFile(blobPath(layout, layer.Digest))
			testbed.Must(t, err)
			lies.Store(layer.Digest.String(), func(w http.ResponseWriter, r *http.Request) { pretenders[how](w, r, right) })
			ref, stolen := owners.Listener.Addr().String()+"/"+name+":1", thieves.Listener.Addr().String()+"/"+name+":1"
			theirs := s.In("thieves-" + name)
			_, err = s.Ctr(t.Context(), "namespaces", "create", theirs.Namespace)
			testbed.Must(t, err)
			if order == "before" {
				isNotStolen(t, theirs, stolen, pad)
			}
			show := func() {
				t.Helper()
				_, err := s.Snapctl(t.Context(), "pull", ref)
				testbed.Must(t, err)
				if got, err := os.ReadFile(filepath.Join(testbed.MountImage(t, s, ref, "remora"), "pad")); err != nil || !bytes.Equal(got, pad) {
					t.Errorf("the owner has %d other bytes, %v", len(got), err)
				}
			}
			if order == "removed" {
				_, err := s.Snapctl(t.Context(), "pull", ref)
				testbed.Must(t, err)
				if kind == "gzip" {
					testbed.WaitFor(t, "the layer's index", func() bool {
						_, err := os.Stat(filepath.Join(s.Root, "indexes", layer.Digest.Encoded()+".index"))
						return err == nil
					})
				}
				removeAll(t, s, ref)
			} else {
				show()
			}
			isNotStolen(t, theirs, stolen, pad)
			show()
			isNotStolen(t, theirs, stolen, pad)
		})
	}
}

// isNotStolen fails the test if an image shows the bytes of somebody else's file "pad".
func isNotStolen(t *testing.T, s *testbed.Stack, ref string, pad []byte) {
	t.Helper()
	if _, err := s.Snapctl(t.Context(), "pull", ref); err != nil {
		t.Logf("not pulled: %v", err)
		return
	}
	dir := filepath.Join(t.TempDir(), "stolen")
	testbed.Must(t, os.Mkdir(dir, 0o755))
	_, err := s.Ctr(t.Context(), "images", "mount", "--snapshotter", "remora", ref, dir)
	if err != nil {
		t.Logf("not mounted: %v", err)
	} else if got, err := os.ReadFile(filepath.Join(dir, "pad")); err == nil || bytes.Contains(got, pad[:100]) {
		t.Errorf("%s shows %d bytes of a layer that its registry has not, %v", ref, len(got), err)
	}
	_ = unix.Unmount(dir, unix.MNT_DETACH)
	_, _ = s.Ctr(t.Context(), "images", "unmount", "--rm", "--snapshotter", "remora", dir)
	removeAll(t, s, ref)
}

// TestSharedBetweenRegistries: a registry that has a layer, too, of which the node has all, shows that by a handful of small requests, and
// its image is not downloaded.
func TestSharedBetweenRegistries(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	first, second := newFaultyProxy(t, s), newFaultyProxyOn(t, s, "127.0.0.3", false)
	var asked, came atomic.Int64
	count := fault(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		rec := recorded(r, pass)
		asked.Add(1)
		came.Add(int64(rec.Body.Len()))
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()) // or the client has left
	})
	second.fault.Store(&count)
	for _, kind := range []string{"gzip", "estargz", "zstdchunked"} {
		t.Run(kind, func(t *testing.T) {
			name := "shared-" + kind
			_, layer, pad := privateImage(t, s, kind, name)
			see := func(s *testbed.Stack, host string) {
				t.Helper()
				ref := host + "/" + name + ":1"
				_, err := s.Snapctl(t.Context(), "pull", ref)
				testbed.Must(t, err)
				if got, err := os.ReadFile(filepath.Join(testbed.MountImage(t, s, ref, "remora"), "pad")); err != nil || !bytes.Equal(got, pad) {
					t.Errorf("%s has %d other bytes, %v", ref, len(got), err)
				}
			}
			see(s, first.Listener.Addr().String())
			asked.Store(0)
			came.Store(0)
			other := s.In("second-" + kind)
			_, err := s.Ctr(t.Context(), "namespaces", "create", other.Namespace)
			testbed.Must(t, err)
			see(other, second.Listener.Addr().String())
			t.Logf("%d requests, %d bytes of %d", asked.Load(), came.Load(), layer.Size)
			if asked.Load() > 8 || came.Load() > layer.Size/2 {
				t.Errorf("the second registry was asked %d times, for %d bytes of %d", asked.Load(), came.Load(), layer.Size)
			}
		})
	}
}

// TestListedByDigest: an image's own table that lists a file of another registry's private layer by its digest gets nothing of it.
func TestListedByDigest(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	owners := newFaultyProxy(t, s)
	for _, kind := range []string{"estargz", "zstdchunked"} {
		t.Run(kind, func(t *testing.T) {
			name := "listed-" + kind
			layout, layer, pad := privateImage(t, s, kind, name)
			// The same archive, of whose data nothing is there, is another layer with the same table.
			right, err := os.ReadFile(blobPath(layout, layer.Digest))
			testbed.Must(t, err)
			hollow := bytes.Clone(right)
			clear(hollow[1000 : len(hollow)-20_000])
			mine := layer
			mine.Digest = digest.FromBytes(hollow)
			thief := filepath.Join(t.TempDir(), "thief")
			testbed.Must(t, os.MkdirAll(filepath.Join(thief, "blobs", "sha256"), 0o755))
			testbed.Must(t, os.WriteFile(blobPath(thief, mine.Digest), hollow, 0o644))
			testbed.Must(t, testbed.WriteLayout(thief, "1", []ocispec.Descriptor{mine}, []digest.Digest{digest.FromString(name)}))
			testbed.Must(t, s.Push(t.Context(), thief, "1", "thief-"+kind+":1"))
			ref := owners.Listener.Addr().String() + "/" + name + ":1"
			_, err = s.Snapctl(t.Context(), "pull", ref)
			testbed.Must(t, err)
			if got, err := os.ReadFile(filepath.Join(testbed.MountImage(t, s, ref, "remora"), "pad")); err != nil || !bytes.Equal(got, pad) {
				t.Fatalf("the owner has %d other bytes, %v", len(got), err)
			}
			isNotStolen(t, s, s.Ref("thief-"+kind+":1"), pad)
		})
	}
}
