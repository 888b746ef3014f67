package images_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/remora-storage/remora/conformance/testbed"
	"github.com/remora-storage/remora/fs/index"
)

// plainImage pushes a program's image as it is.
func plainImage(t *testing.T, s *testbed.Stack, p testbed.Program) (ref string) {
	t.Helper()
	layout, err := p.Layout(t.Context())
	testbed.Must(t, err)
	testbed.Must(t, s.Push(t.Context(), layout, "src", p.Name+":plain"))
	return s.Ref(p.Name + ":plain")
}

func isRemote(string) bool { return false } // no path is excused

// TestImport: images as they are: the tree is what containerd unpacks, and the program runs.
func TestImport(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	for _, p := range testbed.Programs {
		t.Run(p.Name, func(t *testing.T) {
			ref := plainImage(t, s, p)
			_, err := s.Snapctl(t.Context(), "pull", ref)
			testbed.Must(t, err)
			sameTree(t, s, ref, ref, isRemote)
			onlyFormat(t, s, ref, "import")
			testbed.RunImage(t, s, ref, p.Name, "remora", p)
		})
	}
	_, err := s.Snapctl(t.Context(), "fetch", s.Ref("nginx:plain"))
	testbed.Must(t, err)
	_, err = s.Ctr(t.Context(), "images", "export", filepath.Join(t.TempDir(), "image.tar"), s.Ref("nginx:plain"))
	testbed.Must(t, err)
	// What was imported survives remorad, and a new container needs no registry.
	testbed.Must(t, s.RestartRemorad(syscall.SIGKILL))
	testbed.Must(t, s.StopRegistry())
	testbed.RunImage(t, s, s.Ref("python:plain"), "again", "remora", testbed.Python)
}

// formats returns how each layer of an image is read here.
func formats(t *testing.T, s *testbed.Stack, ref string) (all []string) {
	t.Helper()
	testbed.WaitFor(t, "all layers to be opened", func() bool {
		st, err := s.Status(t.Context())
		testbed.Must(t, err)
		all = nil
		for _, l := range st.Layers {
			if l.Image == ref {
				all = append(all, l.Format)
			}
		}
		return !slices.ContainsFunc(st.Layers, func(l testbed.LayerStatus) bool { return l.State == "opening" })
	})
	return all
}

func onlyFormat(t *testing.T, s *testbed.Stack, ref, want string) {
	t.Helper()
	f := formats(t, s, ref)
	if len(f) == 0 || slices.ContainsFunc(f, func(f string) bool { return f != want }) {
		t.Errorf("layers are read by %q, want %q alone", f, want)
	}
}

// kindsOfLayers are layers of every kind that a registry holds.
func kindsOfLayers(t *testing.T) []testbed.Blob {
	t.Helper()
	archive := func(write func(add func(h tar.Header, body []byte))) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		write(func(h tar.Header, body []byte) {
			h.Size = int64(len(body))
			if h.Mode == 0 {
				h.Mode = 0o644
			}
			if h.ModTime.IsZero() {
				h.ModTime = time.Unix(1700000000, 0)
			}
			testbed.Must(t, w.WriteHeader(&h))
			_, err := w.Write(body)
			testbed.Must(t, err)
		})
		testbed.Must(t, w.Close())
		return b.Bytes()
	}
	random := make([]byte, 3<<20)
	_, _ = rand.Read(random)
	text := bytes.Repeat([]byte("some text that packs well. "), 200_000)
	base := archive(func(add func(tar.Header, []byte)) {
		for _, d := range []string{"./", "a/", "b/", "c/"} {
			add(tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		}
		add(tar.Header{Name: "a/random"}, random)
		add(tar.Header{Name: "a/text"}, text)
		add(tar.Header{Name: "a/same"}, random)
		add(tar.Header{Name: "b/one", Typeflag: tar.TypeLink, Linkname: "a/random"}, nil)
		add(tar.Header{Name: "b/nanoseconds", Format: tar.FormatPAX, ModTime: time.Unix(1700000001, 123456789)}, []byte("x"))
		add(tar.Header{Name: "b/huge-ids", Format: tar.FormatPAX, Uid: 4294967294, Gid: 3000000000}, []byte("x"))
		add(tar.Header{Name: strings.Repeat("long-name/", 20) + "gnu", Format: tar.FormatGNU}, []byte("gnu"))
		for i := range 2000 {
			add(tar.Header{Name: fmt.Sprintf("c/%d", i)}, text[:i*13])
		}
	})
	above := archive(func(add func(tar.Header, []byte)) {
		add(tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o711}, nil)
		add(tar.Header{Name: "a/.wh.text"}, nil)
		add(tar.Header{Name: "c/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		add(tar.Header{Name: "c/.wh..wh..opq"}, nil)
		add(tar.Header{Name: "c/only"}, []byte("the first"))
		add(tar.Header{Name: "c/only"}, []byte("the last wins"))
	})
	members := func(p []byte) (out []byte) {
		for len(p) > 0 {
			k := min(len(p), 1_000_003)
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			w.Name, w.Comment, w.Extra = "layer.tar", "a comment", []byte("an extra field")
			_, err := w.Write(p[:k])
			testbed.Must(t, err)
			testbed.Must(t, w.Close())
			out, p = append(out, b.Bytes()...), p[k:]
		}
		return out
	}
	frames := func(p []byte) (out []byte) {
		w, err := zstd.NewWriter(nil)
		testbed.Must(t, err)
		for len(p) > 0 {
			k := min(len(p), 1_000_003)
			out, p = w.EncodeAll(p[:k], out), p[k:]
		}
		return out
	}
	one := archive(func(add func(tar.Header, []byte)) { add(tar.Header{Name: "one"}, []byte("alone")) })
	empty := archive(func(func(tar.Header, []byte)) {})
	sparse := sparseArchive(t)
	gz := func(p []byte, diff []byte) testbed.Blob {
		return testbed.Blob{MediaType: ocispec.MediaTypeImageLayerGzip, Data: p, DiffID: digest.FromBytes(diff)}
	}
	packed := members(one)
	return []testbed.Blob{
		gz(members(base), base),
		{MediaType: ocispec.MediaTypeImageLayerZstd, Data: frames(above), DiffID: digest.FromBytes(above)},
		{MediaType: ocispec.MediaTypeImageLayer, Data: sparse, DiffID: digest.FromBytes(sparse)},
		gz(members(empty), empty),
		gz(packed, one),
		{MediaType: ocispec.MediaTypeImageLayerZstd, Data: frames(base), DiffID: digest.FromBytes(base)},
		gz(packed, one), // the same layer twice
		{MediaType: ocispec.MediaTypeImageLayerZstd, Data: frames(above), DiffID: digest.FromBytes(above)},
	}
}

// TestDirectoryOverLink: a layer has a file under a directory that it does not list and that is a symbolic
// link below, as where /bin leads to /usr/bin.
func TestDirectoryOverLink(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	layout := filepath.Join(t.TempDir(), "linked")
	entries := func(all ...tar.Header) func(*tar.Writer) error {
		return func(tw *tar.Writer) error {
			for _, h := range all {
				h.ModTime = time.Unix(1700000000, 0)
				if err := tw.WriteHeader(&h); err != nil {
					return err
				}
			}
			return nil
		}
	}
	testbed.Must(t, testbed.WriteTars(layout, "src",
		entries(tar.Header{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "usr/bin/",
			Typeflag: tar.TypeDir, Mode: 0o751, Uid: 7},
			tar.Header{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin"}, tar.Header{Name: "lost",
				Typeflag: tar.TypeSymlink, Linkname: "no/where"}),
		entries(tar.Header{Name: "bin/tool", Mode: 0o755}, tar.Header{Name: "bin/deeper/tool", Mode: 0o755},
			tar.Header{Name: "lost/tool", Mode: 0o755})))
	testbed.Must(t, s.Push(t.Context(), layout, "src", "linked:src"))
	ref := s.Ref("linked:src")
	_, err := s.Snapctl(t.Context(), "pull", ref)
	testbed.Must(t, err)
	onlyFormat(t, s, ref, "import")
	testbed.Must(t, s.PullOrdinary(t.Context(), ref, "overlayfs"))
	// What is not listed has the time of unpacking where nothing is below it.
	sameTree(t, s, ref, ref, func(p string) bool { return p == "bin" || p == "bin/deeper" || p == "lost" })
	for _, p := range []string{"bin", "bin/deeper", "lost"} {
		var got, want syscall.Stat_t
		testbed.Must(t, syscall.Lstat(filepath.Join(testbed.MountImage(t, s, ref, "remora"), p), &got))
		testbed.Must(t, syscall.Lstat(filepath.Join(testbed.MountImage(t, s, ref, "overlayfs"), p), &want))
		if got.Mode != want.Mode || got.Uid != want.Uid {
			t.Errorf("%s: mode %o, owner %d, want %o, %d", p, got.Mode, got.Uid, want.Mode, want.Uid)
		}
	}
}

// sparseArchive has GNU tar pack a sparse file.
func sparseArchive(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	testbed.Must(t, err)
	for _, off := range []int64{0, 1 << 20, 5 << 20} {
		_, err := f.WriteAt([]byte(strings.Repeat("data ", 3000)), off)
		testbed.Must(t, err)
	}
	testbed.Must(t, f.Truncate(8<<20))
	testbed.Must(t, f.Close())
	out, err := exec.CommandContext(t.Context(), "tar", "-C", dir, "--sparse", "--format=posix", "--mtime=@1700000000",
		"-cf", "-", "sparse").Output()
	testbed.Must(t, err)
	return out
}

// TestLayersOfEveryKind: imported, and read by an index, in each back end, a tree is what containerd unpacks.
func TestLayersOfEveryKind(t *testing.T) {
	t.Parallel()
	layout := filepath.Join(t.TempDir(), "kinds")
	testbed.Must(t, testbed.WriteBlobs(layout, "src", kindsOfLayers(t)...))
	unlisted := func(p string) bool { return strings.HasPrefix(p, "long-name") && !strings.HasSuffix(p, "gnu") }
	for _, c := range testbed.Covering(t, testbed.Combinations(backends, []string{"import", "index"})) {
		backend, format := c[0], c[1]
		t.Run(backend+"/"+format, func(t *testing.T) {
			s := testbed.New(t, testbed.Options{Config: mountBy(backend), LogLevel: "info"})
			ref := s.Ref("kinds:src")
			testbed.Must(t, s.Push(t.Context(), layout, "src", "kinds:src"))
			if format == "index" {
				_, err := s.Snapctl(t.Context(), "index", "push", ref)
				testbed.Must(t, err)
				testbed.Must(t, os.RemoveAll(filepath.Join(s.Root, "indexes"))) // the published one is left
				trustIndexes(t, s, "")
			} else { // containerd has the blobs
				testbed.Must(t, s.PullOrdinary(t.Context(), ref, "overlayfs"))
			}
			_, err := s.Snapctl(t.Context(), "pull", ref)
			testbed.Must(t, err)
			onlyFormat(t, s, ref, format)
			sameTree(t, s, ref, ref, unlisted)
			st, err := os.Stat(filepath.Join(testbed.MountImage(t, s, ref, "remora"), "b/nanoseconds"))
			testbed.Must(t, err)
			if n := st.ModTime().Nanosecond(); n != 123456789 {
				t.Errorf("%d nanoseconds", n)
			}
			_, err = s.Snapctl(t.Context(), "fetch", "--cache-only", ref)
			testbed.Must(t, err)
		})
	}
}

// forgetLayers removes an image, what was cached of it, and the indexes that were made of it.
func forgetLayers(t *testing.T, s *testbed.Stack, ref string) {
	t.Helper()
	removeAll(t, s, ref)
	waitNoLayers(t, s)
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM)) // which ends what makes indexes, too
	testbed.Must(t, os.RemoveAll(filepath.Join(s.Root, "indexes")))
	testbed.Must(t, s.StartRemorad())
}

// trustIndexes has remorad take published indexes of the stack's registry, and start anew.
func trustIndexes(t *testing.T, s *testbed.Stack, more string) {
	t.Helper()
	s.Configure("[index]\ntrust = [\"" + s.Addr + "\"]\n" + more)
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
}

// TestIndex: an unmodified image with a published index is lazy, in each back end: little is fetched, the
// tree is right, so is every byte, and the layers' diffIDs.
func TestIndex(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"precontent", "fuse-tree"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := testbed.New(t, testbed.Options{Config: mountBy(backend), LogLevel: "info"})
			trustIndexes(t, s, "")
			ref := plainImage(t, s, testbed.Python)
			for _, args := range [][]string{{"index", "create", ref}, {"index", "ls"}, {"index", "push", ref}, {"index", "rm",
				ref}, {"index", "show", ref}, {"pull", ref}} {
				out, err := s.Snapctl(t.Context(), args...)
				testbed.Must(t, err)
				t.Log(out)
			}
			onlyFormat(t, s, ref, "index")
			testbed.RunImage(t, s, ref, "python", "remora", testbed.Python)
			if n := fetchedBytes(t, s); n == 0 || n > 60<<20 {
				t.Errorf("%d bytes were fetched for a start of an image of 80 MB", n)
			}
			sameTree(t, s, ref, ref, isRemote)
			_, err := s.Snapctl(t.Context(), "fetch", ref) // blobs for containerd
			testbed.Must(t, err)
			st, err := s.Status(t.Context())
			testbed.Must(t, err)
			for _, l := range st.Layers {
				if !l.Verified {
					t.Errorf("layer %s is not checked", l.Digest)
				}
			}
		})
	}
}

func fetchedBytes(t *testing.T, s *testbed.Stack) (n int64) {
	t.Helper()
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	for _, l := range st.Layers {
		n += l.FetchedBytes
	}
	return n
}

// TestOwnIndex: the node's next pull of an image that it imported is lazy, and so is another node's once it
// is published.
func TestOwnIndex(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{Config: "[index]\npublish = true\n", LogLevel: "info"})
	ref := plainImage(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", ref)
	testbed.Must(t, err)
	onlyFormat(t, s, ref, "import")
	testbed.WaitFor(t, "the index to be published", func() bool {
		_, err := s.Snapctl(t.Context(), "index", "show", "--published", ref)
		return err == nil
	})
	removeAll(t, s, ref)
	waitNoLayers(t, s)
	_, err = s.Snapctl(t.Context(), "pull", ref)
	testbed.Must(t, err)
	onlyFormat(t, s, ref, "index")
	testbed.RunImage(t, s, ref, "python", "remora", testbed.Python)
	// Another node: it has nothing, and trusts the registry.
	s.Configure("trust = [\"" + s.Addr + "/python\"]\n")
	forgetLayers(t, s, ref)
	_, err = s.Snapctl(t.Context(), "pull", ref)
	testbed.Must(t, err)
	onlyFormat(t, s, ref, "index")
	// One that does not trust it imports.
	s.Configure("# not any more\n")
	testbed.Must(t, s.StopRemorad(syscall.SIGTERM))
	removeAll(t, s, ref)
}

// TestHostileIndexes: whatever is published as an index, the image starts, and one warning says why it was
// not used.
func TestHostileIndexes(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	trustIndexes(t, s, "")
	ref, other := plainImage(t, s, testbed.Programs[1]), plainImage(t, s, testbed.Python)
	file := filepath.Join(t.TempDir(), "index")
	_, err := s.Snapctl(t.Context(), "index", "create", "-o", file, other)
	testbed.Must(t, err)
	good, err := os.ReadFile(file)
	testbed.Must(t, err)
	_, err = s.Snapctl(t.Context(), "index", "create", "-o", file, ref)
	testbed.Must(t, err)
	ours, err := os.ReadFile(file)
	testbed.Must(t, err)
	if _, err := s.Snapctl(t.Context(), "index", "push", ref, file); err != nil {
		t.Error(err)
	}
	testbed.Must(t, os.WriteFile(file, good, 0o644))
	if _, err := s.Snapctl(t.Context(), "index", "push", ref, file); err == nil {
		t.Error("an index of another image was pushed")
	}
	garbled := bytes.Clone(ours)
	for i := 200; i < len(garbled); i += 97 {
		garbled[i] ^= 0x55
	}
	for name, data := range map[string][]byte{"garbage": []byte("garbage"), "cut": ours[:len(ours)/2], "garbled": garbled, "empty": {0}} {
		t.Run(name, func(t *testing.T) {
			pushArtifact(t, s, "redis", "plain", index.Artifact, data)
			_, err := s.Snapctl(t.Context(), "pull", ref)
			testbed.Must(t, err)
			testbed.RunImage(t, s, ref, "redis", "remora", testbed.Programs[1])
			forgetLayers(t, s, ref)
		})
	}
	log, err := os.ReadFile(s.RemoradLog())
	testbed.Must(t, err)
	if !bytes.Contains(log, []byte("published index ignored")) {
		t.Error("no warning says that an index was ignored")
	}
}

// TestImportModes: a registry's layers are imported whatever index they have, or left to containerd.
func TestImportModes(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	_, lazy := testbed.Pushed(t, s, testbed.Python)
	s.Configure("[import.for.\"" + s.Addr + "/python\"]\nmode = \"eager\"\nkeep_blobs = true\n[import.for.\"" + s.Addr +
		"/redis\"]\nmode = \"ordinary\"\n")
	testbed.Must(t, s.RestartRemorad(syscall.SIGTERM))
	_, err := s.Snapctl(t.Context(), "pull", lazy)
	testbed.Must(t, err)
	onlyFormat(t, s, lazy, "import")
	testbed.RunImage(t, s, lazy, "python", "remora", testbed.Python)
	redis := plainImage(t, s, testbed.Programs[1])
	out, err := s.Snapctl(t.Context(), "pull", redis)
	testbed.Must(t, err)
	if f := formats(t, s, redis); len(f) != 0 || !strings.Contains(out, "unpacked: ") {
		t.Errorf("layers are read by %q:\n%s", f, out)
	}
	testbed.Must(t, s.StopRegistry()) // keep_blobs: containerd can export it all the same
	_, err = s.Ctr(t.Context(), "images", "export", filepath.Join(t.TempDir(), "image.tar"), lazy)
	testbed.Must(t, err)
}

// TestBlobsInStore: blobs that containerd has are not fetched again.
func TestBlobsInStore(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	ref := plainImage(t, s, testbed.Python)
	testbed.Must(t, s.PullOrdinary(t.Context(), ref, "overlayfs"))
	p := newFaultyProxy(t, s)
	refused := fault(status(http.StatusForbidden)) // ranges of blobs
	p.fault.Store(&refused)
	testbed.Must(t, outsideClient(t.Context(), s, ref, "", true))
	onlyFormat(t, s, ref, "import")
	testbed.RunImage(t, s, ref, "python", "remora", testbed.Python)
}

// TestImportRefuses: a layer that is not what its image promises is not mounted, its bytes are dropped, and
// the reason names it.
func TestImportRefuses(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, writeManyLayers(layout, 1))
	testbed.Must(t, liar(layout, "src", "lie"))
	testbed.Must(t, s.Push(t.Context(), layout, "lie", "liar:lie"))
	ref := s.Ref("liar:lie")
	out, err := s.Snapctl(t.Context(), "pull", ref)
	if err == nil || !strings.Contains(err.Error(), "diffID") {
		t.Errorf("pull: %v\n%s", err, out)
	}
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	for _, l := range st.Layers {
		if l.State != "quarantined" || l.Backend != "" {
			t.Errorf("layer is %s, mounted by %q", l.State, l.Backend)
		}
	}
	if len(st.Layers) == 0 || st.Cache.Bytes != 0 {
		t.Errorf("%d layers, %d bytes in the cache", len(st.Layers), st.Cache.Bytes)
	}
	// The same layer in an honest image.
	testbed.Must(t, writeManyLayers(layout, 1))
	testbed.Must(t, s.Push(t.Context(), layout, "src", "honest:src"))
	_, err = s.Snapctl(t.Context(), "pull", s.Ref("honest:src"))
	testbed.Must(t, err)
	if got, err := os.ReadFile(filepath.Join(testbed.MountImage(t, s, s.Ref("honest:src"), "remora"),
		"layers/0")); err != nil || string(got) != "layer 0" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestForeignLayers are fetched from where the manifest says. The registry is one of this test's, since others
// take no such manifest.
func TestForeignLayers(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: "private_places = true\n"})
	layers := kindsOfLayers(t)[:1]
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(layers[0].Data))
	}))
	defer elsewhere.Close()
	layers[0].MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
	layers[0].URLs = []string{"ftp://no.such.place/", elsewhere.URL + "/layer"}
	layout := filepath.Join(t.TempDir(), "layout")
	testbed.Must(t, testbed.WriteBlobs(layout, "src", layers...))
	manifest, err := indexOfLayout(layout)
	testbed.Must(t, err)
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := path.Base(r.URL.Path)
		if name == "src" {
			name = manifest.Digest.String()
		}
		doc, err := os.ReadFile(filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(name, "sha256:")))
		if err != nil || name == digest.FromBytes(layers[0].Data).String() {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Docker-Content-Digest", name)
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", manifest.MediaType)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(doc))
	}))
	defer registry.Close()
	host := registry.Listener.Addr().String()
	testbed.Must(t, s.PlainHTTP(host, host))
	_, err = s.Snapctl(t.Context(), "pull", host+"/foreign:src")
	testbed.Must(t, err)
	onlyFormat(t, s, host+"/foreign:src", "import")
}

// TestImportOfDockerAndIndex: a manifest of Docker's schema 2 and an index of several platforms, pulled as
// any client of containerd does.
func TestImportOfDockerAndIndex(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	layout, err := testbed.Python.Layout(t.Context())
	testbed.Must(t, err)
	_, err = testbed.Output(t.Context(), nil, "skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", "--format", "v2s2",
		"oci:"+layout+":src", "docker://"+s.Ref("python:docker"))
	testbed.Must(t, err)
	testbed.Must(t, outsideClient(t.Context(), s, s.Ref("python:docker"), "", true))
	onlyFormat(t, s, s.Ref("python:docker"), "import")
	testbed.RunImage(t, s, s.Ref("python:docker"), "docker", "remora", testbed.Python)

	multi := filepath.Join(t.TempDir(), "multi")
	testbed.Must(t, testbed.WriteBlobs(multi, "src", kindsOfLayers(t)[:2]...))
	m, err := indexOfLayout(multi)
	testbed.Must(t, err)
	elsewhere := m
	elsewhere.Annotations, m.Annotations = nil, nil
	elsewhere.Platform = &ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	m.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	testbed.Must(t, testbed.TagIndex(multi, "multi", []ocispec.Descriptor{elsewhere, m}))
	_, err = testbed.Output(t.Context(), nil, "skopeo", "--insecure-policy", "copy", "--all", "--dest-tls-verify=false",
		"oci:"+multi+":multi", "docker://"+s.Ref("multi:all"))
	testbed.Must(t, err)
	_, err = s.Snapctl(t.Context(), "pull", s.Ref("multi:all"))
	testbed.Must(t, err)
	onlyFormat(t, s, s.Ref("multi:all"), "import")
}

// indexOfLayout returns the first manifest of a layout.
func indexOfLayout(dir string) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := readJSON(filepath.Join(dir, "index.json"), &index); err != nil {
		return ocispec.Descriptor{}, err
	}
	return index.Manifests[0], nil
}

// TestImportManyLayers: 130 layers.
func TestImportManyLayers(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info"})
	layout := filepath.Join(t.TempDir(), "many")
	testbed.Must(t, writeManyLayers(layout, 130))
	testbed.Must(t, s.Push(t.Context(), layout, "src", "many:src"))
	_, err := s.Snapctl(t.Context(), "pull", s.Ref("many:src"))
	testbed.Must(t, err)
	onlyFormat(t, s, s.Ref("many:src"), "import")
	root := testbed.MountImage(t, s, s.Ref("many:src"), "remora")
	for _, i := range []int{0, 77, 129} {
		if got, err := os.ReadFile(filepath.Join(root, fmt.Sprintf("layers/%d", i))); err != nil || string(got) != fmt.Sprint("layer ", i) {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

// TestImportWithoutRoom: an image that does not fit the cache runs all the same.
func TestImportWithoutRoom(t *testing.T) {
	t.Parallel()
	s := testbed.New(t, testbed.Options{LogLevel: "info", Config: "[cache]\nlimit = \"60MiB\"\n"})
	ref := plainImage(t, s, testbed.Python)
	_, err := s.Snapctl(t.Context(), "pull", ref)
	testbed.Must(t, err)
	testbed.RunImage(t, s, ref, "python", "remora", testbed.Python)
	sameTree(t, s, ref, ref, isRemote)
	st, err := s.Status(t.Context())
	testbed.Must(t, err)
	if st.Cache.Bytes > 60<<20 {
		t.Errorf("%d bytes in a cache of 60 MiB", st.Cache.Bytes)
	}
}
